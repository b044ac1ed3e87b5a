from django.contrib import admin
from django.urls import path

from server import views

urlpatterns = [
    path("", views.front, name="front"),
    path("send", views.send, name="send"),
    path("admin/", admin.site.urls),
]
