// The Monitor page: the history from /api/history as charts and a table.
(function () {
    "use strict";

    const {element, number, clock, charts} = flowerCharts,
        SLOTS = {'15m': 180, '1h': 180, '6h': 180, '24h': 144},
        // Seconds between two requests
        INTERVALS = {'15m': 5, '1h': 20, '6h': 60, '24h': 60},
        SPANS = {'15m': '15 min', '1h': '1 h', '6h': '6 h', '24h': '24 h'},
        KINDS = {task: 'Tasks', worker: 'Workers', queue: 'Queues'},
        STATES = {succeeded: 'SUCCESS', failed: 'FAILURE', retried: 'RETRY', revoked: 'REVOKED'},
        MARKS = {started: 'flower-proxy started', lost: 'connection to the broker lost',
            restored: 'connection to the broker restored', dropped: 'events dropped', missed: 'events of tasks missed'},
        // Of all series, only these have a hue of their own
        HUES = 7,
        TABLE_INTERVAL = 30,
        // Slots of a history that has just begun
        FEWEST = 24,
        byId = name => document.getElementById('monitor-' + name),
        view = {range: '15m', by: null, name: null, kind: 'task'},
        order = {column: 'failed', descending: true},
        drawCharts = charts(byId('charts'), go);
    let data = null, rows = [], polling = null, tablePolling = null, isPaused = false, updated = null;

    // What is shown stands in the address

    function address(changes) {
        const shown = Object.assign({range: view.range, by: view.by, name: view.name}, changes);
        return location.pathname + '?' + Object.keys(shown).filter(key => shown[key] !== null)
            .map(key => key + '=' + encodeURIComponent(shown[key])).join('&');
    }

    function readAddress() {
        const query = new URLSearchParams(location.search);
        view.range = SLOTS[query.get('range')] ? query.get('range') : '15m';
        view.by = KINDS[query.get('by')] && query.has('name') ? query.get('by') : null;
        view.name = view.by && query.get('name');
        const title = view.by ? view.by[0].toUpperCase() + view.by.slice(1) + ' ' + view.name : 'Whole cluster';
        byId('scope').replaceChildren(title, ...view.by ? [' ', link({by: null, name: null}, 'Whole cluster')] : []);
        document.title = title + ' · Monitor · Flower';
    }

    function go(url) {
        history.pushState(null, '', url);
        show();
    }

    function link(changes, text) {
        return element('a', {href: address(changes), onclick: event => {
            if (!event.ctrlKey && !event.metaKey && !event.shiftKey) {
                event.preventDefault();
                go(address(changes));
            }
        }}, text);
    }

    // Without the user name and password that the address may have, which fetch refuses
    function urlOf(path) {
        return new URL(new URL(path, document.baseURI).pathname, location.origin);
    }

    // The tasks that a number counts, in a slot, or in the range
    function tasksUrl(outcome, slot) {
        const url = urlOf('tasks'),
            first = data.first + (slot || 0) * data.step,
            end = slot === null ? data.first + data.covered.length * data.step : first + data.step,
            // A second earlier, since the time is the worker's and its events take time
            query = {state: STATES[outcome], ended: first - 1 + '..' + end};
        if (view.by === 'task') { query.name = view.name; }
        if (view.by === 'worker') { query.worker = view.name; }
        url.search = Object.keys(query).map(key => key + '=' + encodeURIComponent(query[key])).join('&');
        return url.href;
    }

    function apiUrl(parameters) {
        const url = urlOf('api/history');
        Object.keys(parameters).filter(key => parameters[key] !== null)
            .forEach(key => url.searchParams.set(key, parameters[key]));
        return url.href;
    }

    // Data

    // Without the time before the history began, so that a new one fills the charts
    function trimmed(answer) {
        const skipped = Math.max(0, Math.min(Math.floor((answer.began - answer.first) / answer.step),
                answer.covered.length - FEWEST)),
            rest = old => old && Object.fromEntries(Object.keys(old).map(name => [name, old[name].slice(skipped)]));
        return Object.assign({}, answer, {first: answer.first + skipped * answer.step,
            covered: answer.covered.slice(skipped), columns: rest(answer.columns), queues: rest(answer.queues)});
    }

    function merge(answer) {
        if (answer.complete || !data) { return trimmed(answer); }
        const kept = (answer.first - data.first) / data.step,
            excess = Math.max(0, kept + answer.covered.length - SLOTS[answer.range]),
            join = (old, added) => (old || Array(kept).fill(null)).slice(0, kept).concat(added).slice(excess),
            joined = (old, added) => Object.fromEntries(
                Object.keys(added).map(name => [name, join(old && old[name], added[name])]));
        return Object.assign({}, answer, {
            first: data.first + excess * data.step,
            covered: join(data.covered, answer.covered),
            columns: joined(data.columns, answer.columns),
            queues: answer.queues && joined(data.queues, answer.queues),
            marks: data.marks.filter(mark => mark[0] < answer.first).concat(answer.marks)
        });
    }

    function isObserved(slot) {
        return data.covered[slot] >= (slot === data.covered.length - 1 ? 1 : data.step / 2);
    }

    function perSecond(column) {
        return data.columns[column].map((count, slot) => isObserved(slot) ? count / data.covered[slot] : null);
    }

    function failedPercent() {
        return data.columns.failed.map((failed, slot) => {
            const ended = failed + data.columns.succeeded[slot];
            return ended && isObserved(slot) ? 100 * failed / ended : null;
        });
    }

    // The same queue has the same hue, unless another one has taken it
    function hues(names) {
        const taken = [];
        return names.map(name => {
            let hue = Array.from(name).reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 9973, 7) % HUES;
            while (taken.includes(hue)) { hue = (hue + 1) % HUES; }
            taken.push(hue);
            return hue;
        });
    }

    function queueLines() {
        if (view.by) {
            return [{label: 'last', style: 'active-line', dash: 0, values: data.columns.length},
                {label: 'longest', style: 'muted', dash: 1, values: data.columns.longest}];
        }
        const peak = name => Math.max(0, ...data.queues[name]),
            names = Object.keys(data.queues).sort((one, other) => peak(other) - peak(one) || (one < other ? -1 : 1)),
            top = names.slice(0, HUES), rest = names.slice(HUES), hue = hues(top),
            lines = top.map((label, index) => ({label, style: 'hue-' + hue[index], dash: index % 4,
                values: data.queues[label], url: () => address({by: 'queue', name: label}), scopes: true}));
        if (rest.length) {
            lines.push({label: rest.length + ' others', style: 'muted', dash: 3, values: data.covered.map((_, slot) => {
                const lengths = rest.map(name => data.queues[name][slot]).filter(length => length !== null);
                return lengths.length ? lengths.reduce((sum, length) => sum + length, 0) : null;
            })});
        }
        return lines;
    }

    function model() {
        const columns = data.columns,
            outcome = (label, style, dash) => ({label, style, dash, values: perSecond(label), counts: columns[label],
                filled: label === 'failed', url: slot => tasksUrl(label, slot), title: 'Show these tasks'}),
            quantiles = of => ['p50', 'p95', 'p99'].map((label, dash) =>
                ({label, dash, style: ['active-line', 'warning', 'danger'][dash], values: columns[of + '_' + label]})),
            failures = slot => tasksUrl('failed', slot),
            found = [
                {title: 'Outcomes per second', unit: '/s', url: failures, lines: [outcome('succeeded', 'success', 0),
                    outcome('retried', 'warning', 2), outcome('revoked', 'muted', 3), outcome('failed', 'danger', 1)]},
                {title: 'Failed', unit: ' %', url: failures, lines: [{label: 'failed', style: 'danger', dash: 0,
                    filled: true, values: failedPercent(), counts: columns.failed, url: failures, title: 'Show these tasks'}]},
                {title: 'Runtime', unit: 's', lines: quantiles('runtime')},
                {title: 'Queue wait', unit: 's', lines: quantiles('wait'),
                    note: document.getElementById('monitor').dataset.sendsEvents === '1' ? ''
                        : 'Clients must send events: set task_send_sent_event in the Celery configuration.'}];
        if (view.by !== 'task' && view.by !== 'worker') {
            found.push({title: 'Queue length', unit: '', lines: queueLines()});
        }
        if (view.by !== 'task' && view.by !== 'queue') {
            const executing = {label: 'executing', style: 'active-line', dash: 1, values: columns.executing};
            found.push(view.by ? {title: 'Executing tasks', unit: '', lines: [executing]}
                : {title: 'Workers online, executing tasks', unit: '', lines: [
                    {label: 'online', style: 'success', dash: 0, values: columns.online}, executing]});
        }
        const from = data.covered.length < SLOTS[data.range] ? 'Since ' + clock(data.first) : 'Last ' + SPANS[data.range];
        return {first: data.first, step: data.step, span: from, charts: found,
            // A slot that has just begun is no gap
            observed: data.covered.map((_, slot, all) => isObserved(slot) || slot === all.length - 1 && isObserved(slot - 1)),
            marks: data.marks.map(([time, kind, count]) => [time, MARKS[kind] + (count ? ' (' + count.toLocaleString() + ')' : '')])};
    }

    // Page

    function latest(values) {
        return values.reduce((found, value) => value === null ? found : value, null);
    }

    function showTiles() {
        // The last complete slots, for about a quarter of a minute at least
        const slots = Math.max(1, Math.round(15 / data.step)), recent = values => values.slice(-slots - 1, -1),
            sum = column => recent(data.columns[column]).reduce((total, count) => total + count, 0),
            covered = recent(data.covered).reduce((total, seconds) => total + seconds, 0),
            ended = sum('succeeded') + sum('failed'),
            tiles = [['Finished per second', covered ? number((ended + sum('retried')) / covered) : '–'],
                ['Failed', ended ? number(100 * sum('failed') / ended, ' %') : '–'],
                ['Runtime, p95', number(latest(recent(data.columns.runtime_p95)), 's')],
                ['Queue wait, p95', number(latest(recent(data.columns.wait_p95)), 's')]];
        if (data.columns.length) { tiles.push(['Messages queued', number(latest(data.columns.length))]); }
        if (data.columns.online) { tiles.push(['Workers online', number(latest(data.columns.online))]); }
        byId('tiles').replaceChildren(...tiles.map(([title, value]) =>
            element('article', {class: 'metric-card'}, element('p', {class: 'metric-label'}, title),
                element('p', {class: 'metric-value'}, value))));
    }

    function showChoices() {
        byId('ranges').replaceChildren(...data.ranges.map(range => element('button', {type: 'button',
            class: 'btn btn-outline-secondary' + (range === view.range ? ' active' : ''),
            'aria-pressed': String(range === view.range), onclick: () => go(address({range}))}, SPANS[range])));
    }

    function showTable() {
        const columns = {name: KINDS[view.kind].slice(0, -1), runs: 'Runs', failed: 'Failed', failed_percent: 'Failed %',
                mean: 'Mean', p95: 'Worst p95'},
            value = row => row[order.column] === null ? -1 : row[order.column],
            compare = (one, other) => value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0,
            sorted = rows.slice().sort((one, other) => (order.descending ? -1 : 1) * compare(one, other)),
            head = Object.keys(columns).map(column => element('th', {scope: 'col',
                'aria-sort': column === order.column ? (order.descending ? 'descending' : 'ascending') : null},
                element('button', {type: 'button', onclick: () => {
                    order.descending = column === order.column ? !order.descending : column !== 'name';
                    order.column = column;
                    showTable();
                }}, columns[column] + (column !== order.column ? '' : order.descending ? ' ▼' : ' ▲')))),
            body = sorted.map(row => element('tr', null,
                element('td', null, link({by: view.kind, name: row.name}, row.name || '(no name)')),
                element('td', null, row.runs.toLocaleString()), element('td', null, row.failed.toLocaleString()),
                element('td', null, number(row.failed_percent)), element('td', null, number(row.mean, 's')),
                element('td', null, number(row.p95, 's')), element('td', null, spark(row.spark))));
        byId('table').replaceChildren(element('thead', null, element('tr', null, ...head, element('th', {scope: 'col'}, 'Trend'))),
            element('tbody', null, ...body.length ? body
                : [element('tr', null, element('td', {colspan: 7, class: 'muted'}, 'No task has ended in this range.'))]));
        byId('kinds').replaceChildren(...Object.keys(KINDS).map(kind => element('button', {type: 'button',
            class: 'btn btn-outline-secondary' + (kind === view.kind ? ' active' : ''), 'aria-pressed': String(kind === view.kind),
            onclick: () => {
                view.kind = kind;
                tablePolling.now();
            }}, KINDS[kind])));
        byId('csv').href = apiUrl({range: view.range, by: view.by || view.kind, name: view.name, format: 'csv'});
    }

    function spark(counts) {
        const highest = Math.max(1, ...counts),
            points = counts.map((count, index) => (index * 90 / (counts.length - 1)).toFixed(1) + ' ' + (22 - 20 * count / highest).toFixed(1));
        return element('svg', {class: 'spark active-line', viewBox: '0 0 90 24', 'aria-hidden': 'true'},
            element('path', {class: 'line', d: 'M' + points.join('L')}));
    }

    function showStatus(isLive) {
        const since = updated ? 'Not live since ' + updated : 'No data';
        byId('refresh-status').textContent = isPaused ? 'Paused at ' + updated : isLive ? 'Live' : since;
        byId('live-indicator').classList.toggle('status-dot-live', isLive && !isPaused);
        byId('live-indicator').classList.toggle('status-dot-error', !isLive);
    }

    function onData(answer) {
        // An answer for another view, which the request overtook
        if (answer.range !== view.range || answer.by !== view.by || answer.name !== view.name) { return; }
        data = merge(answer);
        updated = clock(Date.now() / 1000, true);
        showChoices();
        showTiles();
        drawCharts(model());
        showStatus(true);
    }

    function show() {
        readAddress();
        data = null;
        [polling, tablePolling].forEach(one => one && one.end());
        polling = poll({
            interval: INTERVALS[view.range],
            url: () => apiUrl({range: view.range, by: view.by, name: view.name, since: data && data.cursor}),
            onData,
            onError: () => showStatus(false)
        });
        tablePolling = poll({
            interval: TABLE_INTERVAL,
            url: () => apiUrl({range: view.range, by: view.kind}),
            onData: answer => {
                if (answer.by === view.kind) {
                    rows = answer.rows;
                    showTable();
                }
            },
            onError: () => {}
        });
        pause(false);
        [polling, tablePolling].forEach(one => one.now());
    }

    function pause(wanted) {
        isPaused = wanted;
        byId('pause').textContent = isPaused ? 'Resume' : 'Pause';
        [polling, tablePolling].forEach(one => isPaused ? one.stop() : one.start());
        showStatus(updated !== null);
    }

    byId('pause').addEventListener('click', () => pause(!isPaused));
    window.addEventListener('popstate', show);
    show();
}());
