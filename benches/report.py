"""Tells what scripts/bench has measured: a Markdown report, and charts as small SVG files. Measures nothing itself."""

import math
import statistics
from html import escape

KIB = 1024
# What issue 5 asks for: the highest ratio of our cost to another's, by body size.
GOALS = {
    "null": {1 * KIB: 1.15, 16 * KIB: 1.10, 128 * KIB: 1.10, KIB * KIB: 1.05},
    "nginx": {1 * KIB: 0.60, 16 * KIB: 0.60, 128 * KIB: 0.90, KIB * KIB: 0.95},
    "envoy": {1 * KIB: 0.20, 16 * KIB: 0.20, 128 * KIB: 0.40},
    "alloy": {},
}
EPOLL_GOAL, VERBATIM_GOAL, IDLE_GOAL, IDLE_BYTES_GOAL, LINEAR_GOAL, CORES_GOAL, P99_GOAL_US = (
    1.25, 1.03, 1.1, 4 * KIB, 0.10, 1.8, 2000,
)
# Below this a report says that its verdicts are worth little.
ROUNDS_MIN = 3
COLOURS = ["#d9480f", "#1971c2", "#2f9e44", "#7048e8", "#868e96", "#c2255c", "#0c8599"]


def row_name(size, connections):
    return f"{size_name(size)} × {connections}"


def size_name(size):
    return f"{size // (KIB * KIB)} MiB" if size >= KIB * KIB else f"{size // KIB} KiB"


def medians(record, part, key, by=("row", "gateway")):
    """{(row, gateway): median} in the order of measurement."""
    found = {}
    for one in record["results"]:
        if one["part"] == part:
            found.setdefault(tuple(one[name] for name in by), []).append(one[key])
    return {name: statistics.median(values) for name, values in found.items()}


def unique(values):
    return list(dict.fromkeys(values))


# -- Markdown --------------------------------------------------------------------------------------------------------


def markdown(record):
    parts = [heading(record), cost_table(record), awake_table(record), push_table(record), destinations_table(record), isolation_table(record)]
    parts += [idle_table(record), ack_table(record)]
    parts += [latency_table(record), cores_table(record), failures(record)]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(record):
    hashes = record.get("sha256", {})
    programs = "; ".join(f"{name}: {version or 'version unknown'}" + f" ({hashes.get(name, '')[:12]})" for name, version in record["versions"].items())
    commit = f"commit {record['commit']}" + ("" if record.get("built_here", True) else " (of the scripts: pyrotee was given with --binary)")
    averages = [(record.get("load_average_before"), "before"), (record["load_average"], "at the end")]
    loads = ", ".join(f"{' '.join(f'{one:.1f}' for one in average)} {when}" for average, when in averages if average)
    rounds = f"{record['rounds']} round" + "s" * (record["rounds"] != 1)
    lines = [
        "# What one push costs",
        "",
        f"`{record['command'].strip()}`, {record['started']}, {record['seconds']} s, {commit}, Linux "
        f"{record['kernel']}, {record['cpus']} CPUs ({record['cpu']}), load average {loads}; route {record['route']}, "
        f"{rounds} of {record['seconds_each']} s.",
        "",
        f"Programs, with the beginning of each one's SHA-256: {programs}.",
    ]
    if record["rounds"] < ROUNDS_MIN:
        lines += ["", f"**With fewer than {ROUNDS_MIN} rounds, what is said of goals below is noise as much as measurement.**"]
    lines += [f"\nSkipped: {name} ({why})." for name, why in record["skipped"].items()]
    return "\n".join(lines)


def columns(cost):
    """The gateways of a table: ours, the floor, peers. They were measured in orders that change."""
    known = ["pyrotee", "pyrotee tuned", "pyrotee epoll", "pyrotee verbatim", "pyrotee queued", "null", "nginx", "envoy", "alloy"]
    found = unique(gateway for _, gateway in cost)
    return [one for one in known if one in found] + [one for one in found if one not in known]


def cost_table(record):
    cost = medians(record, "table", "cpu_us_per_push")
    if not cost:
        return ""
    spread = spreads(record, "table")
    gateways = columns(cost)
    lines = [
        "## CPU microseconds per push, two destinations",
        "",
        "Medians; in brackets half the distance between the quartiles.",
        "",
        table_line(["bodies × connections"] + gateways),
        table_rule(len(gateways)),
    ]
    rows = unique(row for row, _ in cost)
    for row in rows:
        lines.append(table_line([row] + [with_spread(cost, spread, (row, one)) for one in gateways]))
    sizes = {one["row"]: one["bytes"] for one in record["results"] if one["part"] == "table"}
    checks = [("null", "to null"), ("nginx", "to nginx"), ("envoy", "to Envoy"), ("alloy", "to Alloy")]
    checks = [(peer, title) for peer, title in checks if any(gateway == peer for _, gateway in cost)]
    with_tuned = any(gateway == "pyrotee tuned" for _, gateway in cost)
    titles = [title for _, title in checks] + ["epoll to io_uring", "verbatim to alloy", "queued to all"] + ["tuned to null"] * with_tuned
    lines += [
        "",
        "Medians of the rounds' ratios, the goal behind the sign; **bold: goal missed**. `tuned` is what `scripts/release` builds, the others what cargo does.",
        "",
        table_line(["bodies × connections"] + titles),
        table_rule(len(titles)),
    ]
    for row in rows:
        if (row, "pyrotee") not in cost:
            continue
        cells = [judged(ratio_to(record, row, "pyrotee", peer), 1, GOALS[peer].get(sizes[row])) for peer, _ in checks]
        cells.append(judged(ratio_to(record, row, "pyrotee epoll", "pyrotee"), 1, EPOLL_GOAL))
        cells.append(judged(ratio_to(record, row, "pyrotee verbatim", "pyrotee"), 1, VERBATIM_GOAL))
        cells.append(judged(ratio_to(record, row, "pyrotee queued", "pyrotee"), 1, None))
        if with_tuned:
            cells.append(judged(ratio_to(record, row, "pyrotee tuned", "null"), 1, GOALS["null"].get(sizes[row])))
        lines.append(table_line([row] + cells))
    return "\n".join(lines)


def awake_table(record):
    cost = medians(record, "awake", "cpu_us_per_push")
    if not cost:
        return ""
    spread = spreads(record, "awake")
    gateways = columns(cost)
    ours = [one for one in gateways if one != "null"] if "null" in gateways else []
    lines = ["## The same while the load's CPU never halts", "", "Ratios are medians of the rounds' ratios, the goal behind the sign.", ""]
    lines += [table_line(["bodies × connections"] + gateways + [f"{one} to null" for one in ours]), table_rule(len(gateways) + len(ours))]
    sizes = {one["row"]: one["bytes"] for one in record["results"] if one["part"] == "awake"}
    for row in unique(row for row, _ in cost):
        cells = [with_spread(cost, spread, (row, one)) for one in gateways]
        cells += [judged(ratio_to(record, row, one, "null", "awake"), 1, GOALS["null"].get(sizes[row])) for one in ours]
        lines.append(table_line([row] + cells))
    return "\n".join(lines)


def push_table(record):
    cost = medians(record, "push", "cpu_us_per_push")
    if not cost:
        return ""
    spread = spreads(record, "push")
    gateways = columns(cost)
    lines = ["## The Push route, CPU microseconds per push", "", "Two destinations; protobuf with a gzip'd pprof in it, labels spliced. "
             "Medians; in brackets half the distance between the quartiles.", ""]
    ratios = [(own, title) for own, title in (("pyrotee tuned", "tuned to null"), ("pyrotee", "to null")) if {own, "null"} <= set(gateways)]
    lines += [table_line(["bodies × connections"] + gateways + [title for _, title in ratios]), table_rule(len(gateways) + len(ratios))]
    for row in unique(row for row, _ in cost):
        cells = [with_spread(cost, spread, (row, one)) for one in gateways]
        cells += [judged(ratio_to(record, row, own, "null", part="push"), 1, None) for own, _ in ratios]
        lines.append(table_line([row] + cells))
    return "\n".join(lines)


def isolation_table(record):
    found = {}
    for one in record["results"]:
        if one["part"] == "isolation":
            found.setdefault(one["gateway"], {}).setdefault(one["ack"], []).append(one)
    if not found:
        return ""
    lines = ["## Isolation", "", "Three destinations, 16 KiB × 64 at 1000 per second, the third destination in trouble; the other two got every profile, "
             "once, or the run counts as failed. What a client waits for under `queued`, and for the first of the other two under `first`, "
             "which is when that one has it. Medians of the rounds; p99 as the quietest quarter of the rounds has it, too, for a machine that "
             "interrupts adds to it and never takes away, and that to both healthy ones: how far these are apart is what the number is worth.", ""]
    acks, healthy = ("queued", "first"), ("healthy", "healthy again")
    lines += [table_line(["third destination"] + [f"{ack}: {what}" for ack in acks for what in ("per second", "p50", "p99", "quiet p99", "to healthy")])]
    lines += [table_rule(10)]
    quiet = lambda runs: sorted(one["latency_us"]["p99"] for one in runs)[(len(runs) - 1) // 4]
    for name, by_ack in sorted(found.items(), key=lambda one: one[0] not in healthy):
        cells = [name]
        for ack in acks:
            runs, base = by_ack.get(ack, []), [found[one][ack] for one in healthy if ack in found.get(one, {})]
            if not runs or not base:
                cells += ["-"] * 5
                continue
            middle = lambda key: statistics.median(one["latency_us"][key] for one in runs)
            rate = statistics.median(one["per_second"] for one in runs)
            ratio = judged(quiet(runs), statistics.mean(quiet(one) for one in base), None if name in healthy else 1.10)
            if not all(statistics.median(kept_rate(one) for one in some) == 1 for some in (runs, *base)):
                ratio = "rate missed"
            cells += [f"{rate:.0f}", f"{middle('p50'):.0f} µs", f"{middle('p99'):.0f} µs", f"{quiet(runs):.0f} µs", ratio]
        lines.append(table_line(cells))
    return "\n".join(lines)


def with_spread(cost, spread, name):
    if name not in cost:
        return "-"
    return f"{cost[name]:.1f}" + ("" if spread[name] is None else f" ({spread[name]:.1f})")


def spreads(record, part):
    """Half the distance between the quartiles; None where there is only one round."""
    found = {}
    for one in record["results"]:
        if one["part"] == part:
            found.setdefault((one["row"], one["gateway"]), []).append(one["cpu_us_per_push"])
    result = {}
    for name, values in found.items():
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else None
        result[name] = (quartiles[2] - quartiles[0]) / 2 if quartiles else None
    return result


def ratio_to(record, row, own, base, part="table"):
    """Of the CPU time of two gateways: the median of the rounds' ratios. Some machines change between two speeds that are a third apart
    and last for minutes; in one round of one row both gateways have met the same. A round in which one of them failed has no ratio."""
    found = {own: {}, base: {}}
    for one in record["results"]:
        if one["part"] == part and one["row"] == row and one["gateway"] in found:
            rounds = found[one["gateway"]]
            rounds[one.get("round", len(rounds))] = one["cpu_us_per_push"]
    ratios = [found[own][number] / found[base][number] for number in found[own] if number in found[base]]
    return statistics.median(ratios) if ratios else None


def judged(value, base, goal):
    if value is None or not base:
        return "-"
    ratio = value / base
    if goal is None:
        return f"{ratio:.2f}"
    text = f"{ratio:.2f} ≤ {goal:.2f}" if ratio <= goal else f"{ratio:.2f} > {goal:.2f}"
    return text if ratio <= goal else f"**{text}**"


def destinations_table(record):
    cost = medians(record, "destinations", "cpu_us_per_push", by=("destinations", "gateway"))
    if not cost:
        return ""
    gateways = unique(gateway for _, gateway in cost)
    lines = ["## Cost against number of destinations", "", "CPU microseconds per push, 16 KiB × 16.", ""]
    lines += [table_line(["destinations"] + gateways), table_rule(len(gateways))]
    counts = sorted({count for count, _ in cost})
    for count in counts:
        lines.append(table_line([str(count)] + [f"{cost[count, one]:.1f}" if (count, one) in cost else "-" for one in gateways]))
    own = {count: cost[count, "pyrotee"] for count in counts if (count, "pyrotee") in cost}
    if len(own) > 2:
        first, last = min(own), max(own)
        slope = (own[last] - own[first]) / (last - first)
        off = max(abs(own[count] / (own[first] + slope * (count - first)) - 1) for count in own)
        verdict = "within" if off <= LINEAR_GOAL else "**beyond**"
        lines += ["", f"Each further destination costs {slope:.1f} µs; largest distance from that line {off:.0%}, {verdict} the goal of 10 %."]
    return "\n".join(lines)


def idle_table(record):
    memory = next((one["memory"] for one in record["results"] if one["part"] == "memory"), None)
    cost = medians(record, "idle", "cpu_us_per_push", by=("gateway",))
    if not memory:
        return ""
    lines = ["## Idle connections", "", table_line(["idle connections", "resident memory", "bytes per idle connection"]), table_rule(2)]
    for one in memory:
        each = (one["resident_bytes"] - memory[0]["resident_bytes"]) / one["idle"] if one["idle"] else None
        text = "-" if each is None else f"{each:.0f} ≤ {IDLE_BYTES_GOAL}" if each <= IDLE_BYTES_GOAL else f"**{each:.0f} > {IDLE_BYTES_GOAL}**"
        lines.append(table_line([str(one["idle"]), f"{one['resident_bytes'] / KIB / KIB:.1f} MiB", text]))
    if len(cost) == 2:
        alone, beside = cost[("alone",)], cost[("beside 16384 idle",)]
        lines += ["", f"64 busy connections (16 KiB) cost {alone:.1f} µs per push alone and {beside:.1f} µs beside 16384 idle ones: {judged(beside, alone, IDLE_GOAL)}."]
    return "\n".join(lines)


def ack_table(record):
    cost = medians(record, "ack", "cpu_us_per_push", by=("gateway",))
    if not cost:
        return ""
    speed = medians(record, "ack", "per_second", by=("gateway",))
    lines = ["## queued and all", "", "16 KiB × 64, closed loop.", "", table_line(["--ack", "CPU µs per push", "pushes per second"]), table_rule(2)]
    lines += [table_line([name, f"{cost[name,]:.1f}", f"{speed[name,]:.0f}"]) for (name,) in cost]
    found = {}
    for one in record["results"]:
        if one["part"] == "half rate":
            found.setdefault(one["gateway"], []).append((one["latency_us"]["p50"], one["latency_us"]["p99"], kept_rate(one)))
    if found:
        lines += ["", "At half of that rate, open loop, latency from the intended start:", "", table_line(["", "p50", "p99"]), table_rule(2)]
        for name, pairs in found.items():
            p50, p99 = (statistics.median(values) for values in list(zip(*pairs))[:2])
            if statistics.median(kept for _, _, kept in pairs) < 1:
                lines.append(table_line([name, f"{p50:.0f} µs", f"{p99:.0f} µs, rate missed"]))
                continue
            missed = name.startswith("queued") and p99 > P99_GOAL_US
            text = f"**{p99:.0f} µs > {P99_GOAL_US} µs**" if missed else f"{p99:.0f} µs"
            lines.append(table_line([name, f"{p50:.0f} µs", text]))
    return "\n".join(lines)


def latency_table(record):
    found = latencies(record)
    if not found:
        return ""
    gateways = unique(gateway for _, gateway in found)
    rows = unique(row for row, _ in found)
    lines = ["## Latency under load", "", "p50 / p99 in µs at shares of pyrotee's saturated rate, 16 KiB, 64 connections, open loop.", ""]
    lines += [table_line(["share"] + gateways), table_rule(len(gateways))]
    for row in rows:
        cells = ["{:.0f} / {:.0f}".format(*found[row, one]) if (row, one) in found else "overloaded" for one in gateways]
        lines.append(table_line([row] + cells))
    return "\n".join(lines)


def latencies(record):
    found = {}
    for one in record["results"]:
        if one["part"] == "latency" and kept_rate(one):
            found.setdefault((one["row"], one["gateway"]), []).append((one["latency_us"]["p50"], one["latency_us"]["p99"]))
    return {name: tuple(statistics.median(values) for values in zip(*pairs)) for name, pairs in found.items()}


def kept_rate(one):
    """Whether a load at a fixed rate got near it. Where it did not, latency says how far behind it was, and nothing of the gateway."""
    return one["per_second"] >= 0.9 * one["rate"]


def cores_table(record):
    cost = medians(record, "cores", "cpu_us_per_push", by=("gateway",))
    if len(cost) < 2:
        return ""
    shared, apart = cost[("2 cores",)], cost[("2 processes",)]
    work = 2 * apart / shared
    text = f"{work:.2f} ≥ {CORES_GOAL}" if work >= CORES_GOAL else f"**{work:.2f} < {CORES_GOAL}**"
    return (f"## Two cores\n\nA push costs {shared:.1f} µs on two cores of one process and {apart:.1f} µs on two processes of one core, which share nothing, on "
            f"the same CPUs under the same loads: by CPU time two cores do {text} times the work of one.")


def failures(record):
    if not record["failures"]:
        return ""
    lines = ["## Failed measurements", ""]
    return "\n".join(lines + [f"- {one['part']}, {one['row']}, {one['gateway']}: {one['why']}" for one in record["failures"]])


def table_line(cells):
    return "| " + " | ".join(cells) + " |"


def table_rule(columns):
    return "|---|" + "---:|" * columns


# -- SVG -------------------------------------------------------------------------------------------------------------


def charts(record):
    """{name: svg}"""
    made = {}
    cost = medians(record, "table", "cpu_us_per_push", by=("bytes", "connections", "gateway"))
    if cost:
        measured = {key[2] for key in cost}
        shown = [one for one in ("pyrotee", "pyrotee epoll", "null", "nginx", "envoy", "alloy") if one in measured]
        sizes = sorted({key[0] for key in cost})
        series = [(one, [(size_name(size), cost[size, 16, one]) for size in sizes if (size, 16, one) in cost]) for one in shown]
        made["cost-by-size"] = chart("Cost per push by size of body (16 connections, 2 destinations)", "CPU µs per push", series, [size_name(size) for size in sizes], log=True)
    cost = medians(record, "destinations", "cpu_us_per_push", by=("destinations", "gateway"))
    if cost:
        counts = sorted({count for count, _ in cost})
        series = [(one, [(str(count), cost[count, one]) for count in counts if (count, one) in cost]) for one in unique(gateway for _, gateway in cost)]
        made["cost-by-destinations"] = chart("Cost per push by number of destinations (16 KiB × 16)", "CPU µs per push", series, [str(count) for count in counts], places=counts)
    memory = next((one["memory"] for one in record["results"] if one["part"] == "memory"), None)
    if memory:
        idle = [one["idle"] for one in memory]
        series = [("pyrotee", [(str(one["idle"]), one["resident_bytes"] / KIB / KIB) for one in memory])]
        made["memory-by-connections"] = chart("Resident memory by idle connections", "MiB", series, [str(count) for count in idle], places=idle)
    found = latencies(record)
    if found:
        series, shares = [], sorted(unique(row for row, _ in found), key=percent)
        for gateway in unique(one for _, one in found):
            series.append((f"{gateway} p99", [(row, found[row, gateway][1] / 1000) for row in shares if (row, gateway) in found]))
        title = "p99 latency under load (share of pyrotee's saturated rate)"
        made["latency-under-load"] = chart(title, "milliseconds; a line ends where its gateway cannot keep up", series, shares, log=True, places=[percent(row) for row in shares])
    return made


def percent(row):
    return int(row.rstrip("%"))


def chart(title, unit, series, labels, log=False, places=None):
    """Lines over labelled places on the x axis: evenly spaced, or at the numbers of `places`. A measurement that failed is a gap."""
    series = [(name, points) for name, points in series if points]
    width, height, left, right, top, bottom = 720, 380, 64, 150, 44, 44
    spots = places or list(range(len(labels)))
    low, high = min(spots), max(spots)
    values = [value for _, points in series for _, value in points]
    ticks = log_ticks(values) if log else linear_ticks(values)
    bottom_value, top_value = ticks[0], ticks[-1]

    def at_x(label):
        share = (spots[labels.index(label)] - low) / ((high - low) or 1)
        return left + share * (width - left - right)

    def at_y(value):
        if log:
            share = math.log(value / bottom_value) / math.log(top_value / bottom_value)
        else:
            share = (value - bottom_value) / (top_value - bottom_value)
        return height - bottom - share * (height - top - bottom)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{left}" y="20" font-size="15">{escape(title)}</text>',
        f'<text x="{left}" y="36" fill="#555">{escape(unit + "; logarithmic" * log)}</text>',
    ]
    for tick in ticks:
        y = at_y(tick)
        out.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#ddd"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{tick:g}</text>')
    for label in labels:
        out.append(f'<text x="{at_x(label):.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#555">{escape(label)}</text>')
    ends = []
    for index, (name, points) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{'L' if number else 'M'}{at_x(label):.1f} {at_y(value):.1f}" for number, (label, value) in enumerate(points))
        out.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for label, value in points:
            out.append(f'<circle cx="{at_x(label):.1f}" cy="{at_y(value):.1f}" r="3" fill="{colour}"><title>{escape(name)}, {escape(label)}: {value:.3g}</title></circle>')
        ends.append((at_y(points[-1][1]), name, colour))
    last = 0.0
    for y, name, colour in sorted(ends):
        last = max(y, last + 15)
        out.append(f'<text x="{width - right + 8}" y="{last + 4:.1f}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"


def linear_ticks(values):
    step = nice_step(max(values) / 5)
    return [step * number for number in range(int(max(values) / step) + 2)]


def log_ticks(values):
    ticks, tick = [], 1e-6
    while True:
        for factor in (1, 2, 5):
            ticks.append(round(tick * factor, 9))
        if tick > max(values):
            break
        tick *= 10
    first = max(index for index, one in enumerate(ticks) if one <= min(values))
    last = min(index for index, one in enumerate(ticks) if one >= max(values))
    return ticks[first : max(last, first + 1) + 1]


def nice_step(step):
    size = 10.0 ** len(str(int(step))) / 10 if step >= 1 else 0.1
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= step)
