"""Train the Gaussian head of `mini` on your own posed captures, and use what comes out.

    uv run python examples/train_on_your_data.py captures/ outputs/head       captures/: folders with a transforms.json

The recipe says what differs from configs/head/captures.yaml; scripts/train_head.py is what runs it, and goes on where
it stopped when it is started again. A few steps teach nothing: give it an evening.
"""

import subprocess
import sys
from pathlib import Path

from da3_splat import load_model

ROOT = Path(__file__).parents[1]
RECIPE = """\
data: {{source: captures, sizes: [[112, 154]], contexts: 4, targets: 1, workers: 0}}
optimization: {{steps: {steps}}}
"""


def main(captures: Path, output: Path, steps: int = 2000) -> None:
    output.mkdir(parents=True, exist_ok=True)
    recipe = output / "recipe.yaml"
    recipe.write_text(RECIPE.format(steps=steps))
    command = [sys.executable, ROOT / "scripts" / "train_head.py", "--config", recipe]
    subprocess.run([*command, "--path", captures, "--output", output], check=True)
    model = load_model(output / "model.safetensors")
    print(f"trained: {output / 'model.safetensors'}, SH degree {model.config.sh_degree}; use it with --model")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
