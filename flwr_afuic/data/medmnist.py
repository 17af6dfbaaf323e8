"""Registry of the named data sets: MedMNIST v2 at 28x28 and two local sets in its layout.

Names, checksums, labels and licences of the official sets are those of the ``medmnist``
package 3.0.2 (Yang et al., "MedMNIST v2", Scientific Data 2023; Zenodo record 10519652).
"""

from __future__ import annotations

from dataclasses import dataclass

ZENODO_FILES = "https://zenodo.org/records/10519652/files"
_MEDMNIST = "MedMNIST v2 (Yang et al., Scientific Data 2023), official 28x28 file"
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right",
    "liver", "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip
_BLOOD_CELLS = (
    "basophil", "eosinophil", "erythroblast", "immature granulocyte",
    "lymphocyte", "monocyte", "neutrophil", "platelet",
)  # fmt: skip


@dataclass(frozen=True)
class NamedSet:
    """What is known beforehand of a data set that goes by a name.

    Parameters
    ----------
    name : str
        Name on the command line, and first part of every sample id.
    md5 : str
        MD5 of the file, lowercase hex; checked whenever the file is read.
    channels : int
        1 (grey) or 3 (RGB).
    class_names : tuple of str
        One a class.
    licence : str
        Licence of the images.
    source : str
        Provenance.
    url : str or None
        Official download address; None where there is none.
    filename : str
        Name of the ``.npz`` file.
    multi_label : bool
        True where an image carries several labels at once, which is not supported.
    """

    name: str
    md5: str
    channels: int
    class_names: tuple[str, ...]
    licence: str
    source: str
    url: str | None
    filename: str
    multi_label: bool = False


def _official(
    name: str,
    md5: str,
    channels: int,
    class_names: tuple[str, ...],
    *,
    licence: str = "CC BY 4.0",
    multi_label: bool = False,
) -> NamedSet:
    return NamedSet(
        name=name,
        md5=md5,
        channels=channels,
        class_names=class_names,
        licence=licence,
        source=_MEDMNIST,
        url=f"{ZENODO_FILES}/{name}.npz",
        filename=f"{name}.npz",
        multi_label=multi_label,
    )


_SETS = (
    _official(
        "pathmnist", "a8b06965200029087d5bd730944a56c1", 3,
        ("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
         "normal colon mucosa", "cancer-associated stroma",
         "colorectal adenocarcinoma epithelium"),
    ),
    _official(
        "chestmnist", "02c8a6516a18b556561a56cbdd36c4a8", 1,
        ("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule",
         "pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis",
         "pleural", "hernia"),
        multi_label=True,
    ),
    _official(
        "dermamnist", "0744692d530f8e62ec473284d019b0c7", 3,
        ("actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
         "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
         "vascular lesions"),
        licence="CC BY-NC 4.0",
    ),
    _official(
        "octmnist", "c68d92d5b585d8d81f7112f81e2d0842", 1,
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    ),
    _official(
        "pneumoniamnist", "28209eda62fecd6e6a2d98b1501bb15f", 1, ("normal", "pneumonia")
    ),
    _official(
        "retinamnist", "bd4c0672f1bba3e3a89f0e4e876791e4", 3,
        ("grade 0", "grade 1", "grade 2", "grade 3", "grade 4"),
    ),
    _official(
        "breastmnist", "750601b1f35ba3300ea97c75c52ff8f6", 1, ("malignant", "normal or benign")
    ),
    _official("bloodmnist", "7053d0359d879ad8a5505303e11de1dc", 3, _BLOOD_CELLS),
    _official(
        "tissuemnist", "ebe78ee8b05294063de985d821c1c34b", 1,
        ("collecting duct, connecting tubule", "distal convoluted tubule",
         "glomerular endothelial cells", "interstitial endothelial cells", "leukocytes",
         "podocytes", "proximal tubule segments", "thick ascending limb"),
    ),
    _official("organamnist", "68e3f8846a6bd62f0c9bf841c0d9eacc", 1, _ORGANS),
    _official("organcmnist", "b9ceb9546e10131b32923c5bbeaea2b1", 1, _ORGANS),
    _official("organsmnist", "9ab87b696fb54e2a387ebe992d6ed5f1", 1, _ORGANS),
    NamedSet(
        name="pbc28",
        md5="c5cf3f04a11a068ed7179ee3a61b65bf",
        channels=3,
        class_names=_BLOOD_CELLS,
        licence="CC BY 4.0",
        source=(
            "Acevedo et al., peripheral blood cell images, Data in Brief 2020; cropped to "
            "200x200 and resized to 28x28 (not the official BloodMNIST file)"
        ),
        url=None,
        filename="pbc28.npz",
    ),
    NamedSet(
        name="mednist",
        md5="45e6f808eb5a951fbe341e8ce21477f8",
        channels=1,
        class_names=("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"),
        licence="CC BY-SA 4.0",
        source=(
            "MedNIST (B. J. Erickson, Mayo Clinic; from TCIA, RSNA Bone Age and NIH Chest "
            "X-ray), a subset of 12,000 images at 64x64"
        ),
        url=None,
        filename="mednist64_subset.npz",
    ),
)  # fmt: skip

NAMED_SETS: dict[str, NamedSet] = {entry.name: entry for entry in _SETS}
"""Every named data set, by name; ``phantoms`` is generated and not among them."""
