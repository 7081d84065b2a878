"""What documents have in common."""

import re
from pathlib import Path


def broken_links(document: Path) -> list[str]:
    """The relative links of a Markdown file that lead to no file."""
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text())
    relative = [target.partition("#")[0] for target in targets if "://" not in target]
    return [target for target in relative if not (document.parent / target).exists()]
