// The functions of Flower's flower.js that go wrong behind a reverse proxy, corrected.
// At start-up flower-proxy puts them in place of Flower's own, in memory; the rest of the file is Flower's.

// The public prefix, without a slash at its end. The page says it either as a path or, where nobody told the server,
// relative to itself ('.', '..'), which only the browser can resolve. Two slashes in front would name a host.
function url_prefix() {
    var said = $('#url_prefix').val();
    return said ? new URL(said, document.baseURI).pathname.replace(/\/+$/, '').replace(/^\/+/, '/') : '';
}

// Which page this is, the server says: the address may have a prefix, twice or rewritten, or lack its final slash.
function active_page(name) {
    var page = '/' + $('meta[name=flower-page]').attr('content');
    return name === '/' ? page === name : page.startsWith(name);
}

// The token for control actions stands on the page. A cookie would clash with the one of the host application.
function getCookie(name) {
    return name === '_xsrf' ? $('meta[name=flower-token]').attr('content') : '';
}
