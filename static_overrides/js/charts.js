// Line charts in SVG that share a cursor, for the Monitor page.
//   element(name, attributes, ...children) makes an HTML or SVG element; attributes that begin with "on" are listeners
//   number(value, unit) and clock(time, seconds) format for people
//   charts(container, onFollow) returns a function that draws a model:
//     first, step: time of the first slot and length of a slot in seconds; observed: whether each slot was observed
//     marks: [time, text]; span: words for the range
//     charts: title, unit, note, url: a function that returns where Enter leads in a slot, and lines:
//       label, style: a CSS class, dash: 0 to 3, values: numbers or null, counts: exact numbers,
//       filled, url: a function that returns where a click on the label leads, title: of that link
const flowerCharts = (function () {
    "use strict";

    const LEFT = 46, RIGHT = 66, TOP = 8, BOTTOM = 20, HEIGHT = 220, SUMMARIZED = 4, LABEL = 10,
        BASE = HEIGHT - BOTTOM,
        SVG = ['svg', 'path', 'line', 'rect', 'text', 'circle'];

    function element(name, attributes, ...children) {
        const made = SVG.includes(name) ? document.createElementNS('http://www.w3.org/2000/svg', name)
            : document.createElement(name);
        Object.entries(attributes || {}).forEach(([key, value]) => {
            if (key.startsWith('on')) {
                made.addEventListener(key.slice(2), value);
            } else if (value !== null && value !== undefined) {
                made.setAttribute(key, value);
            }
        });
        // Strings become text, never HTML
        made.append(...children.filter(child => child !== null));
        return made;
    }

    function number(value, unit) {
        if (value === null || value === undefined) { return '–'; }
        if (unit === 's') {
            return value < 1 ? Number((value * 1000).toPrecision(3)) + ' ms' : Number(value.toPrecision(3)) + ' s';
        }
        return (value >= 1000 ? Math.round(value).toLocaleString() : Number(value.toPrecision(3))) + (unit || '');
    }

    // In the browser's time zone
    function clock(time, seconds) {
        const options = {hour: '2-digit', minute: '2-digit', hourCycle: 'h23'};
        if (seconds) { options.second = '2-digit'; }
        return new Date(time * 1000).toLocaleTimeString([], options);
    }

    function zone() {
        return new Date().toTimeString().replace(/^.*?(GMT\S*).*$/, '$1');
    }

    function known(values) {
        return values.filter(value => value !== null);
    }

    function lastKnown(values) {
        return values.reduce((found, value, index) => value === null ? found : index, -1);
    }

    function niceMaximum(lines) {
        const highest = lines.reduce((found, line) => Math.max(found, ...known(line.values)), 0),
            power = Math.pow(10, Math.floor(Math.log10(highest || 1)));
        return highest ? [1, 2, 5, 10].map(factor => factor * power).find(value => value >= highest) : 1;
    }

    function valueText(chart, line, slot) {
        const text = number(line.values[slot], chart.unit), count = line.counts && line.counts[slot];
        // Without a rate, the count is exact, too
        return line.counts && (count || line.values[slot] !== null) ? text + ' (' + count.toLocaleString() + ')' : text;
    }

    // Of the complete slots
    function summary(model, chart) {
        const parts = chart.lines.filter(line => known(line.values.slice(0, -1)).length).slice(0, SUMMARIZED).map(line => {
            const values = known(line.values.slice(0, -1)), mean = values.reduce((sum, value) => sum + value, 0) / values.length;
            return line.label + ': last ' + number(values[values.length - 1], chart.unit) +
                ', mean ' + number(mean, chart.unit) + ', peak ' + number(Math.max(...values), chart.unit);
        });
        return model.span + '. ' + (parts.length ? parts.join('; ') + '.' : 'No data.');
    }

    function slotText(model, slot) {
        const time = model.first + slot * model.step,
            marks = model.marks.filter(mark => mark[0] >= time && mark[0] < time + model.step);
        return [clock(time, true) + ' ' + zone()].concat(model.observed[slot] ? [] : ['not observed'],
            marks.map(mark => mark[1])).join(', ');
    }

    // Only null is a gap. A lone point becomes a dot, and the segment to the open slot is drawn apart.
    function drawLine(line, x, y) {
        const values = line.values, last = values.length - 1, parts = [];
        let path = '', area = '';
        const point = index => x(index).toFixed(1) + ' ' + y(values[index]).toFixed(1),
            isGap = index => values[index] === null || values[index] === undefined;
        values.forEach((value, index) => {
            if (isGap(index)) { return; }
            const begins = isGap(index - 1), ends = isGap(index + 1);
            if (begins && ends) {
                parts.push(element('circle', {class: 'dot ' + line.style, cx: x(index), cy: y(value), r: 2}));
            }
            if (index === last && !begins) {
                parts.push(element('path', {class: 'line forming ' + line.style, d: 'M' + point(index - 1) + 'L' + point(index)}));
            } else {
                path += (begins ? 'M' : 'L') + point(index);
            }
            area += (begins ? 'M' + x(index).toFixed(1) + ' ' + BASE + 'L' : 'L') + point(index) +
                (ends ? 'L' + x(index).toFixed(1) + ' ' + BASE + 'Z' : '');
        });
        if (line.filled && area) { parts.unshift(element('path', {class: 'area ' + line.style, d: area})); }
        if (path) { parts.push(element('path', {class: 'line dash-' + line.dash + ' ' + line.style, d: path})); }
        return parts;
    }

    function drawGaps(model, x) {
        const parts = [], count = model.observed.length;
        for (let slot = 0; slot < count; slot += 1) {
            const first = slot;
            while (slot < count && !model.observed[slot]) { slot += 1; }
            if (slot > first) {
                const left = x(Math.max(first - 0.5, 0)), right = x(Math.min(slot - 0.5, count - 1));
                parts.push(element('rect', {class: 'gap', x: left, y: TOP, width: right - left, height: BASE - TOP}));
            }
        }
        return parts;
    }

    function drawAxes(model, chart, x, y, maximum, width) {
        const rows = [0, maximum / 2, maximum].flatMap(value => [
                element('line', {class: 'grid', x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value)}),
                element('text', {class: 'axis', x: LEFT - 5, y: y(value) + 4, 'text-anchor': 'end'}, number(value, chart.unit))]),
            labels = width < 420 ? 2 : 4, last = model.observed.length - 1;
        return rows.concat(Array.from({length: labels}, (_, part) => {
            const slot = Math.round(part / (labels - 1) * last);
            return element('text', {class: 'axis', x: x(slot), y: HEIGHT - 4, 'text-anchor': 'middle'},
                clock(model.first + slot * model.step, model.step * last < 600));
        }));
    }

    // At the end of the lines, moved apart
    function drawLabels(lines, x, y) {
        const labels = lines.filter(line => line.values.some(value => value))
            .map(line => ({line, top: y(line.values[lastKnown(line.values)])}))
            .sort((one, other) => one.top - other.top);
        labels.forEach((label, index) => {
            label.top = Math.max(label.top, index ? labels[index - 1].top + 12 : TOP);
        });
        const excess = labels.length ? Math.max(0, labels[labels.length - 1].top - BASE) : 0;
        return labels.map(({line, top}) => element('text', {class: 'end ' + line.style, x: x(line.values.length - 1) + 5,
            y: top - excess + 4}, line.label.length > LABEL ? line.label.slice(0, LABEL - 1) + '…' : line.label));
    }

    function charts(container, onFollow) {
        let model = null, drawn = [], cursor = null;

        function draw(chart) {
            const count = model.observed.length, width = Math.max(chart.svg.clientWidth, 200),
                maximum = niceMaximum(chart.lines),
                x = slot => LEFT + slot / (count - 1) * (width - LEFT - RIGHT),
                y = value => BASE - value / maximum * (BASE - TOP);
            chart.x = x;
            chart.slotAt = place => Math.round((place - LEFT) / (width - LEFT - RIGHT) * (count - 1));
            chart.cursor = element('line', {class: 'cursor', y1: TOP, y2: BASE});
            chart.svg.setAttribute('viewBox', '0 0 ' + width + ' ' + HEIGHT);
            chart.svg.replaceChildren(
                ...drawGaps(model, x), ...drawAxes(model, chart, x, y, maximum, width),
                ...model.marks.map(([time]) => (time - model.first) / model.step).filter(slot => slot >= 0 && slot <= count)
                    .map(slot => element('line', {class: 'mark', x1: x(slot), x2: x(slot), y1: TOP, y2: BASE})),
                ...chart.lines.flatMap(line => drawLine(line, x, y)), ...drawLabels(chart.lines, x, y), chart.cursor);
            chart.caption.textContent = summary(model, chart);
            chart.noteLine.textContent = chart.note || '';
            if (!chart.table.hidden) { fillTable(chart); }
        }

        function fillTable(chart) {
            const head = ['Time', ...chart.lines.map(line => line.label)].map(text => element('th', {scope: 'col'}, text)),
                body = model.observed.map((_, slot) => element('tr', null,
                    element('td', null, clock(model.first + slot * model.step, true)),
                    ...chart.lines.map(line => element('td', null, valueText(chart, line, slot)))));
            chart.table.replaceChildren(element('table', {class: 'table table-sm'},
                element('thead', null, element('tr', null, ...head)), element('tbody', null, ...body.reverse())));
        }

        function legendItem(chart, line, slot) {
            const label = line.url ? element('a', {href: line.url(cursor), title: line.title, onclick: event => {
                if (line.scopes && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
                    event.preventDefault();
                    onFollow(line.url(cursor));
                }
            }}, line.label) : line.label;
            return element('li', null, element('svg', {class: line.style, viewBox: '0 0 28 12', 'aria-hidden': 'true'},
                element('path', {class: 'line dash-' + line.dash, d: 'M0 6H28'})), label, ' ',
                element('b', null, valueText(chart, line, slot)));
        }

        // Of all charts; without it, the latest complete slot is shown
        function move(slot) {
            const last = model.observed.length - 1, shown = slot === null ? last - 1 : Math.min(Math.max(slot, 0), last);
            cursor = slot === null ? null : shown;
            drawn.forEach(chart => {
                ['x1', 'x2'].forEach(side => chart.cursor.setAttribute(side, chart.x(shown)));
                chart.cursor.setAttribute('visibility', slot === null ? 'hidden' : 'visible');
                chart.legend.replaceChildren(...chart.lines.map(line => legendItem(chart, line, shown)));
                chart.time.textContent = slotText(model, shown);
                chart.svg.setAttribute('aria-valuemax', last);
                chart.svg.setAttribute('aria-valuenow', shown);
                chart.svg.setAttribute('aria-valuetext', slotText(model, shown) + ': ' +
                    chart.lines.map(line => line.label + ' ' + valueText(chart, line, shown)).join(', '));
            });
        }

        function onKey(chart, event) {
            const last = model.observed.length - 1, now = cursor === null ? last : cursor,
                to = {ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1, Home: 0, End: last}[event.key];
            if (to !== undefined) {
                event.preventDefault();
                move(to);
            } else if (event.key === 'Enter' && chart.url) {
                location.assign(chart.url(cursor));
            }
        }

        function add(chart, index) {
            const id = container.id + '-' + index,
                onPointer = event => move(chart.slotAt(event.clientX - chart.svg.getBoundingClientRect().left));
            chart.svg = element('svg', {class: 'plot', tabindex: 0, role: 'slider', 'aria-labelledby': id,
                'aria-describedby': id + '-caption', 'aria-valuemin': 0, onpointermove: onPointer, onpointerdown: onPointer,
                onpointerleave: () => move(null), onblur: () => move(null), onkeydown: event => onKey(chart, event)});
            chart.caption = element('figcaption', {id: id + '-caption'});
            chart.legend = element('ul', {class: 'monitor-legend'});
            chart.time = element('p', {class: 'monitor-time'});
            chart.noteLine = element('p', {class: 'note'});
            chart.table = element('div', {class: 'monitor-data', tabindex: 0, role: 'region', 'aria-labelledby': id});
            chart.table.hidden = true;
            const toggle = element('button', {type: 'button', class: 'btn btn-sm btn-outline-secondary',
                'aria-expanded': 'false', 'aria-label': 'Table: ' + chart.title, onclick: () => {
                    chart.table.hidden = !chart.table.hidden;
                    toggle.setAttribute('aria-expanded', String(!chart.table.hidden));
                    draw(chart);
                    move(cursor);
                }}, 'Table');
            container.append(element('figure', {class: 'monitor-chart'},
                element('div', {class: 'monitor-chart-head'}, element('h2', {id}, chart.title), toggle),
                chart.caption, chart.legend, chart.time, chart.svg, chart.noteLine, chart.table));
            return chart;
        }

        function update(next) {
            const titles = list => list.map(chart => chart.title).join();
            model = next;
            if (titles(drawn) === titles(model.charts)) {
                drawn.forEach((chart, index) => Object.assign(chart, model.charts[index]));
            } else {
                container.replaceChildren();
                drawn = model.charts.map(add);
                cursor = null;
            }
            drawn.forEach(draw);
            move(cursor);
        }

        new ResizeObserver(() => {
            if (model) { update(model); }
        }).observe(container);
        return update;
    }

    return {element, number, clock, charts};
}());
