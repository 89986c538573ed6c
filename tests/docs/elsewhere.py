"""Commands of the pages that no page test runs as they stand, and the test or CI step that runs them.

A key is a page and the command, or a page alone where a test of its own runs all of it.
"""

from __future__ import annotations

from typing import Final

_RECIPES: Final = "tests/recipes/test_recipes.py::test_runs_on_the_sample"
_RAY: Final = "tests/docs/test_ray_page.py::test_the_page"
_CONFORMANCE: Final = ".ci/run: make conformance"
_SETUP: Final = "tests/docs/test_commands.py::test_what_make_installs"

COMMANDS: Final[dict[tuple[str, str], str]] = {
    ("README.md", "make demo"): "tests/docs/test_commands.py::test_what_make_demo_runs",
    ("README.md", "make test"): ".ci/run: make test",
    ("README.md", "pip install -c constraints.txt torch"): _SETUP,
    ("README.md", 'pip install -c constraints.txt ".[onnx,s3,search,language]"'): _SETUP,
    ("README.md", "vila-data plan mine.yaml"): "tests/house/test_readme.py::test_your_own_data",
    ("README.md", "vila-data run  mine.yaml --out runs/mine --runner local"): (
        "tests/house/test_readme.py::test_your_own_data"
    ),
    ("README.md", "vila-data --help"): "tests/docs/test_commands.py::test_help",
    ("docs/conformance.md", "make conformance"): _CONFORMANCE,
    ("docs/conformance.md", "make conformance JSON=benchmarks/results/conformance.json"): _CONFORMANCE,
    ("docs/conformance.md", "VILA_DATA_SHARED=DIR make conformance"): _CONFORMANCE,
    ("docs/conformance.md", "python tests/conformance/make_environments.py nemo-curator"): _CONFORMANCE,
    ("docs/ray.md", "ray start --head --port=6379 --dashboard-port=8265 --metrics-export-port=8080"): _RAY,
    ("docs/ray.md", "ray start --address=HEAD:6379"): "tests/docs/test_ray_page.py::test_a_second_machine_joins",
    ("docs/reproduce_vila.md", "python shards/sample/serve.py --port 8765"): (
        "tests/docs/test_commands.py::test_the_sample_is_served"
    ),
    ("docs/reproduce_vila.md", "vila-data recipes --copy vila_pretrain"): (
        "tests/recipes/test_recipes.py::test_a_recipe_is_copied_and_never_written_over"
    ),
    ("docs/reproduce_vila.md", "vila-data plan vila_pretrain.yaml"): _RECIPES,
    ("docs/reproduce_vila.md", "vila-data run  vila_pretrain.yaml --out OUT --limit 20000 --only download"): _RECIPES,
    ("docs/reproduce_vila.md", "vila-data run  vila_pretrain.yaml --out s3://BUCKET/vila_pretrain"): _RECIPES,
}
"""{(page, command): `path::test` of this repository, or `.ci/run: words of the step`}."""

PAGES: Final[dict[str, str]] = {
    "docs/extending.md": "tests/docs/test_extending.py::test_the_examples_of_the_page",
    "docs/plugins.md": "tests/docs/test_plugins_page.py::test_the_page",
    "docs/object_storage.md": "tests/docs/test_object_storage_page.py::test_the_page",
    "docs/ray.md": "tests/docs/test_ray_page.py::test_the_page",
    "docs/training/accelerate.md": "tests/examples/test_docs_pages.py::test_killed_and_started_again_it_goes_on",
    "docs/training/hf_trainer.md": "tests/examples/test_docs_pages.py::test_the_trainer_of_transformers_goes_on",
    "docs/training/lightning.md": "tests/examples/test_docs_pages.py::test_killed_and_started_again_it_goes_on",
    "docs/training/plain_loop.md": "tests/examples/test_docs_pages.py::test_killed_and_started_again_it_goes_on",
    "docs/training/ray_train.md": "tests/examples/test_docs_pages.py::test_ray_goes_on_with_another_number_of_workers",
    "docs/training/validation.md": "tests/loader/test_restart.py::test_every_iteration_begins_at_the_same_batch",
}
"""Pages whose blocks of `sh` and Python a test of their own runs; commands in other blocks stand in COMMANDS."""

QUICK: Final = frozenset({"docs/whatif.md"})
"""Pages that the default tests run; the others are marked slow, since each command is a process of its own."""
