#!/usr/bin/env python3
"""Writes the Grafana dashboard, helm/sluice/files/dashboard.json.

    scripts/dashboard.py            rewrites the file
    scripts/dashboard.py --check    exits 1 when the file says something else

What a panel shows is said here; tests/deploy asks a real Prometheus every query. Colours, axes and the like are left to
Grafana."""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILE = ROOT / "helm" / "sluice" / "files" / "dashboard.json"
WIDTH = 24  # of Grafana's grid
SELECT = 'job=~"$job",instance=~"$instance"'


def series(name, *more):
    """A vector of the chosen instances."""
    return f"{name}{{{','.join([SELECT, *more])}}}"


def rate(name, *more):
    return f"rate({series(name, *more)}[$__rate_interval])"


def quantile(q, name):
    return f"histogram_quantile({q}, sum by (le) ({rate(name + '_bucket')}))"


def mean(name):
    return f"sum({rate(name + '_sum')}) / sum({rate(name + '_count')})"


def quantiles(name):
    return [(quantile(q, name), f"p{round(q * 100)}") for q in (0.5, 0.9, 0.99)]


def stat(title, expression, unit="short", thresholds=()):
    """`thresholds`: (value from which on, colour)."""
    return {"type": "stat", "title": title, "width": 4, "height": 4, "unit": unit, "queries": [(expression, "")],
            "thresholds": list(thresholds)}


def graph(title, queries, unit="short", stack=False, width=8):
    """`queries`: (expression, legend)."""
    return {"type": "timeseries", "title": title, "width": width, "height": 8, "unit": unit, "queries": queries, "stack": stack}


def heatmap(title, name, unit="s", width=8):
    return {"type": "heatmap", "title": title, "width": width, "height": 8, "unit": unit,
            "queries": [(f"sum by (le) (increase({series(name + '_bucket')}[$__rate_interval]))", "{{le}}")]}


ROWS = [
    ("Now", [
        stat("Engines up", f"sum({series('sluice_engine_up')})", thresholds=[(0, "red"), (1, "green")]),
        stat("Open streams", f"sum({series('sluice_open_streams')})"),
        stat("Generated tokens/s", f"sum({rate('sluice_generation_tokens_total')})"),
        stat("First token, p99", quantile(0.99, "sluice_time_to_first_token_seconds"), "s",
             [(0, "green"), (1, "yellow"), (2.5, "red")]),
        stat("Errors, last hour", 'max(sluice:errors:ratio_rate1h{job=~"$job"})', "percentunit",
             [(0, "green"), (0.005, "yellow"), (0.03, "red")]),
        stat("KV cache in use", f"max({series('sluice_kv_usage_ratio')})", "percentunit",
             [(0, "green"), (0.8, "yellow"), (0.95, "red")]),
    ]),
    ("Requests", [
        graph("Calls by method and status", [(f"sum by (method, code) ({rate('sluice_requests_total')}) > 0", "{{method}} {{code}}")],
              "reqps", stack=True),
        graph("Calls refused, by reason", [(f"sum by (reason) ({rate('sluice_rejected_total')})", "{{reason}}")], "reqps", stack=True),
        graph("How generations end", [
            (f"sum by (finish_reason) ({rate('sluice_requests_total', 'finish_reason!=' + chr(34) * 2)})", "{{finish_reason}}"),
            (f"sum by (phase) ({rate('sluice_cancelled_total')})", "cancelled while {{phase}}")], "reqps"),
    ]),
    ("Latency", [
        heatmap("Time to first token", "sluice_time_to_first_token_seconds"),
        heatmap("Between two tokens", "sluice_inter_token_latency_seconds"),
        heatmap("Whole calls", "sluice_request_duration_seconds"),
        graph("Time to first token", quantiles("sluice_time_to_first_token_seconds"), "s"),
        graph("Between two tokens", quantiles("sluice_inter_token_latency_seconds"), "s"),
        graph("In the queue", quantiles("sluice_queue_time_seconds"), "s"),
        graph("First tokens later than 2.5 s and calls that failed", [
            ('max(sluice:late_first_tokens:ratio_rate5m{job=~"$job"})', "late, 5 min"),
            ('max(sluice:late_first_tokens:ratio_rate1h{job=~"$job"})', "late, 1 h"),
            ('max(sluice:errors:ratio_rate5m{job=~"$job"})', "failed, 5 min"),
            ('max(sluice:errors:ratio_rate1h{job=~"$job"})', "failed, 1 h")], "percentunit"),
        graph("From cancel to free pages", quantiles("sluice_cancel_to_free_seconds"), "s"),
        graph("Start", [(f"max by (phase) ({series('sluice_startup_seconds')})", "{{phase}}")], "s"),
    ]),
    ("Tokens", [
        graph("Generated tokens/s", [(f"sum by (instance) ({rate('sluice_generation_tokens_total')})", "{{instance}}")], stack=True),
        graph("Prompt tokens/s", [
            (f"sum({rate('sluice_prompt_tokens_total')})", "computed"),
            (f"sum({rate('sluice_prefix_cache_hits_tokens_total')})", "found in the prefix cache")], stack=True),
        graph("Prefix cache: found of what was looked up", [
            (f"sum({rate('sluice_prefix_cache_hits_tokens_total')}) / sum({rate('sluice_prefix_cache_queries_tokens_total')})", "hits")],
            "percentunit"),
    ]),
    ("KV cache and queue", [
        graph("KV pages", [(f"sum by (state) ({series('sluice_kv_pages')})", "{{state}}")], stack=True),
        graph("KV cache in use", [(series("sluice_kv_usage_ratio"), "{{instance}} engine {{engine}}")], "percentunit"),
        graph("Put back and computed again", [
            (f"sum({rate('sluice_preemptions_total')})", "preemptions/s"),
            (f"sum({rate('sluice_recomputed_tokens_total')})", "tokens/s computed again"),
            (f"sum({series('sluice_leaked_pages')})", "pages leaked")]),
        graph("Sequences", [
            (f"sum({series('sluice_requests_running')})", "running"),
            (f"sum({series('sluice_requests_waiting')})", "waiting")]),
        graph("Tokens that wait", [(f"sum by (instance) ({series('sluice_queue_tokens')})", "{{instance}}")]),
        graph("Bytes that wait", [(f"sum by (instance) ({series('sluice_queue_bytes')})", "{{instance}}")], "bytes"),
    ]),
    ("Steps of the engines", [
        heatmap("Duration of a step (GPU or CPU)", "sluice_step_duration_seconds"),
        graph("Duration of a step (GPU or CPU)", quantiles("sluice_step_duration_seconds"), "s"),
        graph("Gap between two steps", quantiles("sluice_step_host_gap_seconds"), "s"),
        graph("Batch", [
            (mean("sluice_batch_rows"), "rows a step"),
            (mean("sluice_step_tokens"), "tokens a step")]),
        graph("Steps/s", [(f"sum by (instance, engine) ({rate('sluice_steps_total')})", "{{instance}} engine {{engine}}")]),
        graph("Since the last step, while there is work",
              [(series("sluice_engine_last_step_age_seconds"), "{{instance}} engine {{engine}}")], "s"),
    ]),
    ("Tenants", [
        graph("Tokens/s by tenant", [(f"sum by (tenant) ({rate('sluice_tenant_tokens_total')})", "{{tenant}}")], stack=True),
        graph("Open calls", [(f"sum by (tenant) ({series('sluice_tenant_open_calls')})", "{{tenant}}")], stack=True),
        graph("Calls refused for a tenant's limits", [(f"sum by (tenant) ({rate('sluice_tenant_refused_total')})", "{{tenant}}")], "reqps"),
    ]),
    ("Process", [
        graph("Resident memory", [(series("process_resident_memory_bytes"), "{{instance}}")], "bytes"),
        graph("Processors", [(rate("process_cpu_seconds_total"), "{{instance}}")]),
        graph("Connections and files", [
            (series("sluice_connections"), "connections of {{instance}}"),
            (series("process_open_fds"), "files of {{instance}}")]),
        graph("Strangers", [
            (f"sum by (code) ({rate('sluice_auth_refused_total')})", "{{code}}"),
            (f"sum({rate('sluice_connections_refused_total')})", "connections closed"),
            (f"sum by (streams) ({rate('sluice_connections_cut_total')})", "connections cut, streams {{streams}}"),
            (f"sum({rate('sluice_tls_handshakes_failed_total')})", "failed handshakes")], "reqps"),
        graph("Numbers that are wrong", [
            (f"max by (model) ({series('sluice_selfcheck_error')} / {series('sluice_selfcheck_tolerance')})",
             "self-check of {{model}}, of what is allowed"),
            (f"sum({rate('sluice_nonfinite_logits_total')})", "rows/s that are not finite")]),
        graph("Files of configuration refused, log lines lost", [
            (f"sum by (file) (increase({series('sluice_config_reloads_total', 'result=' + json.dumps('refused'))}[$__range]))", "{{file}}"),
            (f"sum(increase({series('sluice_log_lines_dropped_total')}[$__range]))", "log lines")]),
        stat("Certificate ends in", f"min({series('sluice_tls_certificate_not_after_seconds')}) - time()", "s",
             [(0, "red"), (86400, "yellow"), (7 * 86400, "green")]),
        stat("Up for", f"time() - max({series('process_start_time_seconds')})", "s"),
        stat("Short of memory", f"max({series('sluice_short_of_memory')})", thresholds=[(0, "green"), (1, "red")]),
        stat("Draining", f"sum({series('sluice_draining')})", thresholds=[(0, "green"), (1, "yellow")]),
        {**stat("What serves", f"count by (model, build, backend, quantization) ({series('sluice_build_info')})"), "width": 8,
         "legend_only": True},
    ]),
]


def defaults_of(panel):
    defaults = {"unit": panel["unit"]}
    if panel["type"] == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {"fillOpacity": 20 if panel["stack"] else 0, "showPoints": "never",
                              "stacking": {"mode": "normal" if panel["stack"] else "none"}}
    if panel.get("thresholds"):
        (_, first), *others = panel["thresholds"]  # the first holds from the bottom
        defaults["thresholds"] = {"mode": "absolute", "steps": [{"value": None, "color": first}] + [
            {"value": value, "color": color} for value, color in others]}
    return defaults


def options_of(panel):
    if panel["type"] == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "name" if panel.get("legend_only") else "value"}
    if panel["type"] == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel["unit"]}, "color": {"mode": "scheme", "scheme": "Oranges"},
                "cellGap": 0, "tooltip": {"mode": "single", "yHistogram": True}}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}


def panel_json(panel, identity, x, y):
    source = {"type": "prometheus", "uid": "${datasource}"}
    targets = [{"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend or "__auto", "datasource": source,
                "format": "heatmap" if panel["type"] == "heatmap" else "time_series", "instant": False, "range": True}
               for i, (expression, legend) in enumerate(panel["queries"])]
    return {"id": identity, "type": panel["type"], "title": panel["title"], "datasource": source, "targets": targets,
            "gridPos": {"x": x, "y": y, "w": panel["width"], "h": panel["height"]},
            "fieldConfig": {"defaults": defaults_of(panel), "overrides": []}, "options": options_of(panel)}


def panels_json():
    panels, y = [], 0
    for title, row in ROWS:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        y, x, height = y + 1, 0, 0
        for panel in row:
            if x + panel["width"] > WIDTH:
                x, y, height = 0, y + height, 0
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x, height = x + panel["width"], max(height, panel["height"])
        y += height
    return panels


def variable(name, query):
    return {"name": name, "type": "query", "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1,
            "datasource": {"type": "prometheus", "uid": "${datasource}"}, "multi": True, "includeAll": True, "allValue": ".*",
            "current": {"text": "All", "value": "$__all"}}


def dashboard():
    return {
        "uid": "sluice", "title": "Sluice", "tags": ["sluice"], "schemaVersion": 39, "version": 1, "editable": True,
        "graphTooltip": 1, "refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}},
            variable("job", "label_values(sluice_open_streams, job)"),
            variable("instance", 'label_values(sluice_open_streams{job=~"$job"}, instance)')]},
        "panels": panels_json()}


def main(arguments):
    wanted = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" not in arguments:
        FILE.write_text(wanted)
        return 0
    same = FILE.exists() and FILE.read_text() == wanted
    if not same:
        print(f"{FILE.relative_to(ROOT)} differs from what scripts/dashboard.py writes")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
