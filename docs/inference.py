"""Uses a trained model from Python: features, the most similar images, reconstructions.

    PYTHONPATH=. python docs/inference.py RUN 'photos/*.jpg' out.png

RUN is a run, one of its steps, or weights of any kind (docs/weights.md).
"""

import sys

import mae_jax
from mae_jax import data
from mae_jax.tasks import figures


def main(run: str, pattern: str, out: str) -> None:
    """Prints the shapes of the features and the most similar images; draws reconstructions."""
    model = mae_jax.load(run)
    source = data.image_source(pattern)
    files = [source.describe(i) for i in range(min(16, len(source)))]
    images = model.load_images(files)  # uint8 [N, H, W, C]; any array of that shape will do

    features = model.features(images)  # float32 [N, D]: mean of the patch tokens
    tokens = model.features(images, pool="patches")  # [N, L, D]
    earlier = model.features(images, pool="cls", layer=0)  # class token after the first block
    print("features", features.shape, "tokens", tokens.shape, "class token", earlier.shape)

    unit = features / ((features**2).sum(axis=1, keepdims=True) ** 0.5)
    similarity = unit @ unit.T
    for row, file in enumerate(files):
        similarity[row, row] = -1
        best = similarity[row].argmax()
        print(f"{file} is most like {files[best]} ({similarity[row, best]:.3f})")

    # original, masked, predicted, pasted, hidden, target
    views = model.reconstruct(images, mask_ratio=0.75, seed=0)
    figures.save_png(out, figures.reconstruction_grid(views, model.target.caption))


if __name__ == "__main__":
    main(*sys.argv[1:])
