(function () {
    // Replaces moment-timezone: the browser knows the rules of all time zones.
    "use strict";

    var formats = {};

    function format(zone) {
        formats[zone] = formats[zone] || new Intl.DateTimeFormat('en-US', {
            timeZone: zone,
            hourCycle: 'h23',
            year: 'numeric',
            month: 'numeric',
            day: 'numeric',
            hour: 'numeric',
            minute: 'numeric',
            second: 'numeric'
        });
        return formats[zone];
    }

    // Returns the offset from UTC in minutes.
    function offset(zone, time) {
        var parts = {};
        format(zone).formatToParts(time).forEach(function (part) {
            parts[part.type] = Number(part.value);
        });
        var shown = Date.UTC(parts.year, parts.month - 1, parts.day, parts.hour, parts.minute, parts.second);
        return (shown - Math.floor(time / 1000) * 1000) / 60000;
    }

    moment.fn.tz = function (zone) {
        try {
            return this.utcOffset(offset(zone, this.valueOf()));
        } catch (error) {
            // An unknown zone: like moment-timezone, show the browser's time
            console.error(error.message);
            return this;
        }
    };
}());
