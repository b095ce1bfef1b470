"""Write what a card has answered as a Markdown table, a row for each answer."""

from collections.abc import Iterable

from .timing import Figures

COLUMNS = {  # key of `timing.figures` -> heading, format
    "us": ("µs", ".1f"),
    "gb_s": ("GB/s", ".0f"),
    "share_of_copy": ("of copy", ".0%"),
    "tflop_s": ("TFLOP/s", ".1f"),
    "tok_s": ("tokens/s", ",.1f"),
}


def markdown(rows: Iterable[Figures]) -> str:
    """Return the table; what went wrong stands in the last column."""
    heads = ["question", "what", *(head for head, _ in COLUMNS.values()), ""]
    lines = [heads, ["---", "---", *["---:"] * len(COLUMNS), "---"]]
    for row in rows:
        numbers = [format(row[key], shape) if row.get(key) is not None else "" for key, (_, shape) in COLUMNS.items()]
        last = f"**failed**: {row['problem']}" if "problem" in row else row.get("note", "")
        lines.append([row["question"], row["what"], *numbers, last])
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
