"""The contrast of sequences as scanners have them."""

from __future__ import annotations

import pytest

from bundlekit.preparation.sequences import Parameters, contrast_medium, judge

GR, SE, IR, EP = frozenset({"GR"}), frozenset({"SE"}), frozenset({"SE", "IR"}), frozenset({"EP", "SE"})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (Parameters(500, 12, kind=SE), "T1"),
        (Parameters(500, 12, kind=SE, words="T1 AX PC"), "T1"),  # post contrast, or nothing
        (Parameters(700, 11, kind=SE, three_d=True, words="t1_space_sag"), "T1"),
        (Parameters(2300, 2.98, 900, 9, GR, frozenset({"SP", "MP"}), words="t1_mprage_sag_p2_iso"), "T1"),
        (Parameters(8.2, 3.2, 450, 12, GR, words="Ax T1 BRAVO +C"), "T1"),
        (Parameters(7.9, 3.5, None, 8, GR, words="sT1W_3D_TFE"), "T1"),
        (Parameters(250, 2.5, None, 70, GR, words="t1_fl2d_tra"), "T1"),
        (Parameters(2000, 20, 860, 90, IR, words="Ax T1 FLAIR"), "T1"),
        (Parameters(4000, 100, kind=SE, words="t2_tse_tra"), "T2"),
        (Parameters(3200, 408, kind=SE, three_d=True, words="t2_space_sag"), "T2"),
        (Parameters(9000, 110, 2500, kind=IR, words="Ax T2 FLAIR"), "FLAIR"),
        (Parameters(5000, 388, 1800, kind=IR, three_d=True, words="t2_space_dark-fluid_sag"), "FLAIR"),
        (Parameters(9000, 100, None, kind=IR, words="FLAIR tra"), "FLAIR"),  # no TI in the header
        (Parameters(9000, 120, 2250, kind=frozenset({"RM"}), words="Sag CUBE FLAIR"), "FLAIR"),
        (Parameters(4000, 20, kind=SE), ""),  # proton density
        (Parameters(1500, 50, kind=SE), ""),
        (Parameters(4000, 60, 150, kind=IR), ""),  # STIR
        (Parameters(9000, 100, None, kind=IR), ""),  # FLAIR or STIR
        (Parameters(620, 20, None, 20, GR), ""),  # T2*
        (Parameters(6000, 90, kind=EP), ""),
        (Parameters(21, 3.5, None, 18, GR, words="TOF_3D_multi-slab"), ""),
        *(
            (Parameters(23, 3.5, None, 18, GR, words=words), "")
            for words in ("3DTOF", "TOFMRA", "s3DI_MC_HR", "3D_PCA", "inhance 3D PC", "QSM", "WILLIS")
        ),
        (Parameters(23, 3.5, None, 18, GR, words="3D FSPGR", b_value=0.0), "T1"),
        (Parameters(28, 20, None, 15, GR, words="SWI_Images"), ""),
        (Parameters(4000, 100, kind=SE, words="t2_tse_cervical spine"), ""),
        (Parameters(), ""),
    ],
)
def test_contrast_by_times(parameters: Parameters, expected: str) -> None:
    verdict = judge(parameters)
    assert (verdict.contrast, verdict.doubt) == (expected, "")
    assert verdict.why


@pytest.mark.parametrize(
    ("parameters", "doubt"),
    [
        (Parameters(4000, 100, kind=SE, words="t1_se"), "T2, but its description says T1"),
        (Parameters(23, 3.5, None, 18, GR, words="FLASH 3D"), "a T1 or an angiography"),
        (Parameters(500, 12, kind=SE, words="Ax FLAIR"), "T1, but its description says FLAIR"),
        (Parameters(9000, 110, 2500, kind=IR, words="t1 post"), "FLAIR, but its description says T1"),
        (Parameters(9000, 100, kind=SE, words="Ax FLAIR"), "T2, but its description says FLAIR"),
        (Parameters(None, 100, words="t2_tse"), "T2 by its description alone: TR is not given"),
        (Parameters(1500, 50, kind=SE, words="t2_tse"), "T2 by its description alone: TR 1500, TE 50"),
    ],
)
def test_what_disagrees_is_doubted(parameters: Parameters, doubt: str) -> None:
    assert doubt in judge(parameters).doubt


@pytest.mark.parametrize(
    ("agent", "words", "expected"),
    [
        ("Gadovist", "t1_tra", True),
        ("10 ml", "T1 post", True),
        ("", "T1_tra_KM", True),
        ("", "Ax T1 +C", True),
        ("", "AX T1 C+", True),
        ("", "t1 postcontrast", True),
        ("", "t1_mprage_GD", True),
        ("", "T1 ce", True),
        ("NONE", "t1_tra", False),
        ("", "t1_tra_nativ", False),
        ("", "T1 PRE", False),
        ("", "T1 pre-contrast", False),
        ("", "T1 w/o contrast", False),
        ("", "t1 ohne KM", False),
        ("", "t1 non contrast", False),
        ("", "T1/SE/extrp", None),
        ("", "t1_tra posterior fossa", None),
        ("", "", None),
        *(
            ("", f"T1 {words}", False)
            for words in (
                "avant injection",
                "avant gado",
                "before contrast",
                "prior to contrast",
                "no gad",
                "sin contraste",
                "sem contraste",
                "uden kontrast",
                "PRÉ CONTRASTE",
                "pré gado",
                "v.KM",
                "prä KM",
                "voor contrast",
                "før kontrast",
                "przed kontrastem",
                "kontrastsiz",
                "without",
                "W/O AX",
                "WO 3D",
            )
        ),
        *(("", f"T1 {words}", None) for words in ("AX POST FOSSA", "post RT", "post surgery", "post chemo", "post-op")),
        *(("", f"T1 {words}", True) for words in ("post", "POST FS", "post 5 min", "post GAD", "PÓS CONTRASTE")),
        *(("", f"T1 {words}", None) for words in ("W/O FS", "ohne FS", "without fat sat", "sin FS", "W/O MT")),
        *((agent, "T1", False) for agent in ("W/O", "PRE", "nil", "plain", "unenhanced", "nativ", "PRE CONTRAST")),
        *(
            ("", f"T1 {words}", False)
            for words in (
                "v. KM",
                "WITHOUT IV CONTRAST",
                "sin medio de contraste",
                "sans produit de contraste",
                "senza mezzo di contrasto",
                "senza mdc",
            )
        ),
        *(("", f"T1 {words}", True) for words in ("i.v. KM", "nach i.v. KM", "iv KM", "without FS post contrast")),
        *(
            ("", f"T1 {words}", None)  # what a study is called
            for words in (
                "W/O & W CONTRAST",
                "WO AND W GD",
                "WITH AND WITHOUT CONTRAST",
                "W/WO CONTRAST",
                "W & W/O GAD",
            )
        ),
        *(
            ("", f"T1 {words}", True)
            for words in (
                "ohne Fettsättigung nach KM",
                "sans sat graisse avec gado",
                "sans fatsat apres gado",
                "senza saturazione del grasso con mdc",
                "W/O FATSAT C+",
            )
        ),
        *((agent, "T1", False) for agent in ("PRE CONTRAST SCAN", "PRE T1", "plain MRI", "native T1")),
        *((agent, "T1", True) for agent in ("NATIV + KM", "before and after Gadovist", "Pre-filled Gadavist")),
        ("PRE AND POST", "T1", True),
        ("", "T1 FS +C W/O FS", True),
        ("", "T1 apres injection", True),
        *((agent, "T1", False) for agent in ("NO CONTRAST", "WITHOUT", "KEINE", "NON", "NONE GIVEN", "0 ml", "0.0 ml")),
        *((agent, "T1", None) for agent in ("-", "n.a.", "Not applicable", "UNKNOWN")),
        *((agent, "T1", True) for agent in ("0.1 mmol/kg Gd", "7.5 ml", "YES", "NOVAGAD")),
        ("Gadovist", "t1 pre", None),
        ("NO", "t1 post gd", None),
    ],
)
def test_contrast_medium(agent: str, words: str, expected: bool | None) -> None:
    assert contrast_medium(Parameters(agent=agent, words=words))[0] is expected
