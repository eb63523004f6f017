"""Ships recipes and released weights in the package; everything else is in pyproject.toml.

A top-level `configs` in site-packages would collide with that of any other project, so configs/ is
installed as mae_jax/_recipes/configs (see mae_jax/config/recipe_file.py).
"""

from setuptools import find_namespace_packages, find_packages, setup

recipes = ["configs", *(f"configs.{name}" for name in find_namespace_packages("configs"))]
setup(
    packages=[
        *find_packages(include=["mae_jax", "mae_jax.*"]),
        *(f"mae_jax._recipes.{name}" for name in recipes),
    ],
    package_dir={"mae_jax._recipes.configs": "configs"},
    package_data={"mae_jax.checkpoint.released": ["*.safetensors", "*.md"]},
)
