// Corrected functions of Flower's flower.js.
// At start-up, flower-proxy replaces Flower's functions by these, in memory.

// Returns the public prefix without a trailing slash. The page has it as a path or, if the server does not know it,
// relative to the page ('.', '..'). A result with two leading slashes would name a host.
function url_prefix() {
    var prefix = $('#url_prefix').val();
    return prefix ? new URL(prefix, document.baseURI).pathname.replace(/\/+$/, '').replace(/^\/+/, '/') : '';
}

// Uses the path from the server, because that in the address bar may have a prefix or lack the trailing slash.
function active_page(name) {
    var page = '/' + $('meta[name=flower-page]').attr('content');
    return name === '/' ? page === name : page.startsWith(name);
}

// Returns the token for control actions from the page: an _xsrf cookie would clash with that of another application.
function getCookie(name) {
    return name === '_xsrf' ? $('meta[name=flower-token]').attr('content') : '';
}

// Shows since when the workers are not live, instead of the time of the last attempt.
function updateWorkerRefreshStatus(succeeded) {
    var status = $('#workers-refresh-status');
    if (succeeded) {
        status.data('updated', new Date().toLocaleTimeString());
    }
    var updated = status.data('updated');
    status.text(succeeded ? 'Updated ' + updated : updated ? 'Not live since ' + updated : 'Update failed');
    $('#workers-live-indicator').toggleClass('status-dot-live', succeeded).toggleClass('status-dot-error', !succeeded);
}
