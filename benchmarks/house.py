"""The figures of the code itself: lengths of files and functions, `Any`, and the line of the README's first command.

python benchmarks/house.py
"""

import ast
import re
import statistics
import subprocess

from harness import ROOT, read

FOLDERS = ("patchpack", "pipeline", "schemas", "trainer")


def main() -> None:
    """Prints the table."""
    read(__doc__)
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    texts = {name: (ROOT / name).read_text() for name in listed.split() if name.endswith(".py")}
    files = sorted(len(text.splitlines()) for text in texts.values())
    functions = sorted(
        node.end_lineno - node.lineno + 1
        for text in texts.values()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    num_any = sum(len(re.findall(r"\bAny\b", text)) for text in texts.values())
    readme = (ROOT / "README.md").read_text().splitlines()
    print(f"{len(files)} modules, {sum(files):,} lines; median {statistics.median(files):.0f}, longest {files[-1]}")
    print(
        f"{len(functions):,} functions; 90th percentile {functions[len(functions) * 9 // 10]} lines, longest {functions[-1]}"
    )
    print(f"Any: {num_any}, {1000 * num_any / sum(files):.1f} per 1,000 lines")
    first = next(number for number, line in enumerate(readme, 1) if line.startswith("./run_pipeline.sh"))
    print(f"README: the first command is in line {first}")


if __name__ == "__main__":
    main()
