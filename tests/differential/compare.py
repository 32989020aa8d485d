"""Compares what one case led to at Alloy and at pyrotee."""

import accepted
from observed import different_answers, different_arrivals


def compare(case, settings, alloy, ours):
    """Findings, each with the words of the row of docs/compatibility.md that accepts it, or None."""
    context = accepted.Context(case, settings, alloy, ours)
    findings, compared = [], True
    if ours["ended"] != alloy["ended"] and "silent" in (ours["ended"], alloy["ended"]):
        findings.append((f"ended: {alloy['ended']}, {ours['ended']}", None))
    theirs, mine = alloy["answers"], ours["answers"]
    for at in range(max(len(theirs), len(mine))):
        a = theirs[at] if at < len(theirs) else None
        o = mine[at] if at < len(mine) else None
        what = different_answers(a, o)
        if not what or raced(context, a, o):
            continue
        row = accepted.of_answers(context, a, o, at)
        findings.append((f"answer: {what}", row and row.words))
        if a is None or o is None or row and row.ends:
            # What follows is another conversation; nothing that it brings is compared but what ours sends too much.
            compared = False
            break
    for a, o in zip(alloy["arrived"], ours["arrived"]):
        if not different_arrivals(context, a, o) or not (compared or o):
            continue
        row, a, o = accepted.made_alike(context, a, o)
        what = different_arrivals(context, a, o)
        if what:
            row = accepted.of_arrivals(context, a, o)
        findings.append((f"arrived: {what}", row and row.words))
    return findings


def raced(context, a, o):
    """Of destinations that refuse differently, the one that was first is relayed (row 58): neither is wrong."""
    if len(context.case["script"]) == 1 or a is None or o is None or a["status"] == o["status"]:
        return False
    return {a["status"], o["status"]} <= {accepted.step_status(step) for step in context.steps}
