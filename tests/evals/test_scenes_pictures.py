"""Contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from umcompress.evals.scenes import world
from umcompress.evals.scenes.pictures import contact_sheet, save_contact_sheet


def test_images_are_enlarged_unchanged(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    images = [world.render(world.sample_scene(rng)) for _ in range(5)]
    captions = ["a red circle left of a blue square on a plain background"] * 5
    path = tmp_path / "new" / "sheet.png"
    save_contact_sheet(path, images, captions, scale=3, columns=3)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 3 * (144 + 6) + 6
    assert np.array_equal(sheet[6:150:3, 6:150:3], images[0])
    assert np.array_equal(sheet[7:150:3, 157:300:3], images[1])
    plain = np.asarray(contact_sheet(images, scale=3, columns=3))
    assert plain.shape == (2 * (144 + 6) + 6, sheet.shape[1], 3)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 images but 2 captions"):
        contact_sheet([np.zeros((36, 36, 3), dtype=np.uint8)], ["a", "b"])
