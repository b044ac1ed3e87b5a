(function () {
    // An inline script at the start of the head, for pages whose public prefix is unknown to the server.
    function plain(path) {
        try { path = decodeURIComponent(path); } catch (error) { /* not UTF-8 */ }
        return path.replace(/\/+/g, '/');
    }

    var url = new URL(location.href),
        page = '/' + document.querySelector('meta[name=flower-page]').content,
        segments = url.pathname.split('/'),
        first = segments.length - 1;

    if (page === '/') {
        if (!url.pathname.endsWith('/')) {
            url.pathname += '/';
            location.replace(url);
        }
        return;
    }
    // The proxy may have decoded or merged slashes, so the browser's path may have a different number of segments
    while (first > 0 && plain('/' + segments.slice(first).join('/')) !== plain(page)) {
        first -= 1;
    }
    if (first > 0 && segments.length - first !== page.split('/').length - 1) {
        var base = document.createElement('base');
        base.href = url.origin + segments.slice(0, first).join('/') + page;
        document.head.prepend(base);
    }
}());
