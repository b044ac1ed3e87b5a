// Requests JSON every few seconds while the page is visible, with one request at a time, and slower after failures.
// flower-proxy puts this before Flower's flower.js.
//   url:      a function that returns the URL of the next request
//   interval: seconds between two requests
//   onData:   called with the response, and again with the last one if the server has no newer one
//   onError:  called after a failed request
// Returns an object: now() sends the next request at once, stop() and start() pause, end() is final.
function poll(options) {
    "use strict";

    var interval = Math.max(options.interval, 5) * 1000,
        slowest = Math.max(interval, 60000),
        failures = 0,
        due = Date.now() + interval,
        asking = false,
        stopped = false,
        timer,
        etag,
        shown;

    function send(redirect) {
        return fetch(options.url(), {
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
            options.onData(shown);
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
        options.onData(shown);
    }

    async function next() {
        asking = true;
        try {
            await ask();
            failures = 0;
        } catch (error) {
            failures += 1;
            options.onError(error);
        }
        asking = false;
        due = Date.now() + Math.min(interval * Math.pow(2, failures), slowest);
        schedule();
    }

    function schedule() {
        clearTimeout(timer);
        if (!asking && !stopped && !document.hidden) {
            timer = setTimeout(next, Math.max(due - Date.now(), 0));
        }
    }

    document.addEventListener('visibilitychange', schedule);
    schedule();
    return {
        now: function () {
            due = Date.now();
            schedule();
        },
        stop: function () {
            stopped = true;
            schedule();
        },
        start: function () {
            stopped = false;
            schedule();
        },
        end: function () {
            document.removeEventListener('visibilitychange', schedule);
            stopped = true;
            schedule();
        },
        known: function (response, tag) {
            shown = response;
            etag = tag;
        }
    };
}

// Reloads a table. Flower's script calls this instead of its own timer.
function pollTable(table, seconds) {
    "use strict";

    var ajax = table.init().ajax,
        latest,
        polling = poll({
            url: function () { return location.origin + ajax.url; },
            interval: Number(seconds) || 0,
            onData: function (json) {
                var rows = ajax.dataSrc(json);
                if (json !== latest) {
                    table.clear().rows.add(rows).draw(false);
                }
                latest = json;
            },
            onError: function () { ajax.error(); }
        });

    // The response to the table's own request, with which it starts
    table.one('xhr', function (event, settings, json, xhr) {
        polling.known(json, json && xhr.getResponseHeader('ETag'));
        latest = json;
    });
}
