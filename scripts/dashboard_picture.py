#!/usr/bin/env python3
"""Draws panels of the dashboard from a Prometheus, as docs/dashboard.png shows them. Needs matplotlib.

    scripts/dashboard_picture.py URL PICTURE [MINUTES]    URL: of a Prometheus that scrapes a server"""

import json
import math
import pathlib
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402
import numpy as np  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "helm" / "sluice" / "files" / "dashboard.json"
COLUMNS = 3
# Of the panels, by kind and title.
SHOWN = [("timeseries", "Generated tokens/s"), ("heatmap", "Time to first token"), ("heatmap", "Between two tokens"),
         ("timeseries", "Calls by method and status"), ("timeseries", "Calls refused, by reason"), ("timeseries", "Tokens/s by tenant"),
         ("timeseries", "Sequences"), ("timeseries", "Tokens that wait"), ("timeseries", "KV pages"),
         ("timeseries", "Prefix cache: found of what was looked up"), ("timeseries", "Duration of a step (GPU or CPU)"),
         ("timeseries", "Batch")]


def query_range(url, expression, begin, end, step):
    """[(labels, times, values)]; NaN where there is nothing."""
    rates = f"{max(4 * step, 15)}s"
    for name, value in {"$job": ".*", "$instance": ".*", "$__rate_interval": rates, "$__range": f"{int(end - begin)}s"}.items():
        expression = expression.replace(name, value)
    parameters = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": step})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{parameters}", timeout=60) as reply:
        series = json.load(reply)["data"]["result"]
    times = np.arange(begin, end + 0.5, step)
    result = []
    for one in series:
        values = np.full(len(times), math.nan)
        for at, value in one["values"]:
            values[int(round((at - begin) / step))] = float(value)
        result.append((one["metric"], times, values))
    return result


def legend_of(form, labels):
    for name, value in labels.items():
        form = form.replace("{{%s}}" % name, value)
    return form


def draw_lines(axes, panel, answers, dates):
    lines = [(legend_of(target["legendFormat"], labels), values)
             for target, answer in zip(panel["targets"], answers) for labels, _, values in answer]
    lines = [(legend, values) for legend, values in lines if np.nan_to_num(values).any()]
    if panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal":
        axes.stackplot(dates, [np.nan_to_num(values) for _, values in lines], labels=[legend for legend, _ in lines], alpha=0.7)
    else:
        for legend, values in lines:
            axes.plot(dates, values, label=legend, linewidth=1.2)
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize=6, loc="upper left", frameon=False, ncol=2)


def draw_heatmap(axes, answers, dates):
    """Buckets are cumulative: what a cell shows is what came above the bound below."""
    rows = sorted((float(labels["le"]), values) for labels, _, values in answers[0])
    counts = np.diff(np.array([np.nan_to_num(values) for _, values in rows]), axis=0, prepend=0)
    used = [i for i in range(len(rows)) if counts[i].sum() > 0]
    first, last = max(used[0] - 1, 0), min(used[-1] + 1, len(rows) - 1)
    counts = np.ma.masked_less_equal(counts[first:last + 1], 1e-9)
    axes.pcolormesh(dates, np.arange(first, last + 1), counts, cmap="Oranges", shading="nearest", rasterized=True)
    axes.yaxis.set_major_locator(matplotlib.ticker.FixedLocator(range(first, last + 1, max(1, (last - first) // 6))))
    axes.yaxis.set_major_formatter(lambda index, _: f"{rows[int(index)][0]:g}")
    axes.set_ylabel("at most, s", fontsize=7)


def main(arguments):
    if len(arguments) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    url, picture = arguments[0].rstrip("/"), arguments[1]
    end = time.time()
    begin = end - 60 * float(arguments[2] if len(arguments) == 3 else 15)
    step = max(1, round((end - begin) / 150))
    panels = {(panel["type"], panel["title"]): panel for panel in json.loads(DASHBOARD.read_text())["panels"]}
    rows = -(-len(SHOWN) // COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(14, 2.9 * rows), layout="constrained")
    for axes, key in zip(grid.flat, SHOWN):
        panel = panels[key]
        answers = [query_range(url, target["expr"], begin, end, step) for target in panel["targets"]]
        dates = matplotlib.dates.date2num([np.datetime64(int(at), "s") for at in np.arange(begin, end + 0.5, step)])
        if panel["type"] == "heatmap":
            draw_heatmap(axes, answers, dates)
        else:
            draw_lines(axes, panel, answers, dates)
            axes.set_ylabel({"s": "s", "reqps": "calls/s"}.get(panel["fieldConfig"]["defaults"]["unit"], ""), fontsize=7)
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.2)
    figure.savefig(picture, dpi=80)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
