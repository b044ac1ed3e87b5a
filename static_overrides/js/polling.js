// Reloads a table every few seconds while the page is visible, with one request at a time, and slower after failures.
// flower-proxy puts this before Flower's flower.js, and calls it instead of Flower's timer.
function poll(table, seconds) {
    "use strict";

    var ajax = table.init().ajax,
        url = location.origin + ajax.url,
        interval = Math.max(Number(seconds) || 0, 5) * 1000,
        slowest = Math.max(interval, 60000),
        failures = 0,
        due = Date.now() + interval,
        asking = false,
        timer,
        etag,
        shown;

    // The response to the table's own request, with which it starts
    table.one('xhr', function (event, settings, json, xhr) {
        etag = json && xhr.getResponseHeader('ETag');
        shown = json;
    });

    function send(redirect) {
        return fetch(url, {
            headers: etag ? {'If-None-Match': etag} : {},
            redirect: redirect,
            signal: AbortSignal.timeout(30000)
        });
    }

    async function ask() {
        var response;
        try {
            response = await send('follow');
        } catch (error) {
            // The login page of another origin cannot be read, but the redirect to it is seen
            response = await send('manual');
        }
        if (response.status === 304) {
            ajax.dataSrc(shown);
            return;
        }
        var type = response.headers.get('Content-Type') || '';
        if (response.status === 401 || response.type === 'opaqueredirect' || (response.ok && !type.includes('json'))) {
            // The session has ended, and the page itself leads to the login
            location.reload();
            return;
        }
        if (!response.ok) {
            throw new Error(response.statusText);
        }
        shown = await response.json();
        etag = response.headers.get('ETag');
        table.clear().rows.add(ajax.dataSrc(shown)).draw(false);
    }

    async function next() {
        asking = true;
        try {
            await ask();
            failures = 0;
        } catch (error) {
            failures += 1;
            ajax.error();
        }
        asking = false;
        due = Date.now() + Math.min(interval * Math.pow(2, failures), slowest);
        schedule();
    }

    function schedule() {
        clearTimeout(timer);
        if (!asking && !document.hidden) {
            timer = setTimeout(next, Math.max(due - Date.now(), 0));
        }
    }

    document.addEventListener('visibilitychange', schedule);
    schedule();
}
