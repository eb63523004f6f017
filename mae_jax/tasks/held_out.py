"""The held-out images of a run, found again from its checkpoint."""

import ml_collections

from mae_jax import convert
from mae_jax.data import Source, make_sources
from mae_jax.runtime.errors import require


def held_out(model: convert.Weights, path: str, root: str = "") -> Source:
    """The images that a run was evaluated on.

    Args:
      model: weights of the run.
      path: where they were loaded from, for messages.
      root: where the run's data are now; "" if they have not moved.

    Raises:
      UsageError: the weights belong to no run, or its images have changed.
    """
    require(bool(model.run), f"{path} belongs to no run with held-out images: pass --images DIR")
    data = ml_collections.ConfigDict(model.metadata["config"]["data"])
    data.root = root or data.root
    fields = model.fields
    # Uses the list of files that the run saved, if there is one.
    sources = make_sources(
        data,
        image_size=fields["image_size"],
        channels=fields["channels"],
        workdir=model.run,
        objects=model.kind == "mask_rcnn",
    )
    old, new = model.metadata["data"]["source"], sources.train.fingerprint()
    changed = [key for key in old if key != "root" and old[key] != new.get(key)]
    require(
        not changed and sources.eval is not None,
        f"the run's images have changed ({', '.join(changed) or 'none held out'}): "
        "pass --images DIR",
    )
    assert sources.eval is not None
    return sources.eval
