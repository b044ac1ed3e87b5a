from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST

from server import tasks

SENDABLE = {task.name.rpartition(".")[2]: task for task in (tasks.add, tasks.report, tasks.fail)}


def front(request: HttpRequest) -> HttpResponse:
    reports = sorted(path.name for path in settings.MEDIA_ROOT.glob("*.txt"))
    context = {"tasks": SENDABLE, "reports": [settings.MEDIA_URL + name for name in reports]}
    return render(request, "server/front.html", context)


@require_POST
def send(request: HttpRequest) -> HttpResponse:
    """Send a task on behalf of a staff user."""
    if not request.user.is_authenticated:
        # Redirects to the front page, as this URL accepts only POST
        return redirect_to_login(reverse("front"))
    if not request.user.is_staff:
        raise PermissionDenied
    task = SENDABLE.get(request.POST.get("task", ""))
    if task is None:
        return HttpResponse("Unknown task", status=400)
    messages.success(request, f"Sent {task.name} as {task.delay().id}")
    return redirect("front")
