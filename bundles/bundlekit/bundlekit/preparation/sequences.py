"""Which contrast an MR sequence gives: by its times, with what people call it as a second witness.

The limits are wide ones around what is usual at 1.5 and 3 T (e.g. the consensus protocol for brain tumours, Ellingson
et al. 2015, doi 10.1093/neuonc/nov095): what lies between two contrasts is called neither.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# a contrast that is none of the four, by words of descriptions or of (0008,0008) Image Type; the first that fits counts
_OTHER = {
    "localiser": r"\bloc\b|locali[sz]er|scout|survey|3[- ]?plane|plan[- ]?scan",
    "spine": r"spine|spinal|cervical|lumbar|thorac",
    "diffusion": r"dwi|dti|\badc\b|eadc|diff|trace[w ]?\b|hardi|noddi|tensor|\bfa\b",
    "perfusion or dynamic": r"perf|\bdsc\b|\bdce\b|\basl\b|\br?cb[fv]\b|\bmtt\b|\bttp\b|\btmax\b|ktrans|\bdyn",
    "functional": r"bold|f-?mri|resting",
    "angiography": r"tof(?!f)|s3di|\bpca\b|inhance|willis|\bcow\b|angio|\bmr[av]\b|[a-z]mra\b|venogr",
    "susceptibility, T2*": (
        r"\bswi\b|swan\b|\bqsm\b|suscept|venob|h[ae]emo|t2 ?\*|t2[- ]?star|t2[- ]?ffe|\bmedic\b|\bmerge\b"
    ),
    "spectroscopy": r"spectro|\bmrs\b|\bcsi\b|\bpress\b|\bsteam\b",
    "calibration or field map": r"field ?map|\bb[01][- ]?map|shim|calib|asset ?cal|sense ?ref|coil ?surv",
    "map of a relaxation time": r"t[12] ?map|molli\b|synthetic|mdme|qalas|\br[12] ?map",
    "subtraction": r"\bsubt?\b|subtr",
    "projection (MIP)": r"\bm(in)?ip\b|projection",
    "phase": r"\bphase\b|phase ?map|\bpsir\b",
    "STIR": r"\bstir\b",
    "double inversion": r"\bdir\b",
    "proton density": r"\bpdw?\b|dens",
    "balanced steady state": r"ciss\b|fiesta|trufi|b-?ffe|balanced",
}
_HINTS = {
    "T1": r"t1|mp ?-?rage|spgr|bravo|vibe|mp2rage",
    "FLAIR": r"flair|tirm|dark[- ]?fl|fluid[- ]?att",
    "T2": r"t2",
}
_MEDIUM = r"(ce?|con|[ck]ontrast\w*|gd|gad\w*|km|mdc|pdc|inj\w*|medium|agent)"
# what follows "post" and "without" where they are about contrast medium; not "post fossa", "post RT", "without FS"
_NEXT = (
    rf"{_MEDIUM}|t1\w*|ax(ial)?|tra(nsv\w*)?|sag(it\w*)?|cor(onal)?|obl(ique)?|[23] ?d|mp\w*|f?se|tse|f?spgr|vibe|"
    r"bravo|space|cube|iso|thin|\d+ ?(mm|min)?"
)
_BEFORE = re.compile(
    rf"(\b(pre(?![- ]?op)|nati[vf]e?|before|prior to|avant|vor|antes( de)?|prima di)\b[- ]*({_MEDIUM}\b)?)|"
    # of a study, with and without: the text tells both
    r"\b(w ?o( \w+)? ?(&|and|\+) ?w(ith)?|w(ith)? ?(&|and|\+)? ?(w ?o|without))\b|"
    rf"\b(without|w ?o|sans|ohne|sin|sem|senza|uden|utan|zonder|bez|ilman)([- ]*(({_NEXT})\b|$)|"
    rf"([- ]+(i ?v|i\. ?v\.?|any|the|medio|mezzo|produit|moyen|de|du|di|del)){{1,3}}[- ]+{_MEDIUM}\b)|"
    rf"\b(non|no|voor|przed|prae?|fore?(?= *k))[- ]*{_MEDIUM}\b|"
    rf"(?<!\bi)(?<!\bi[. ])(?<!\bi\. )\bv\.? ?km\b|\bpre{_MEDIUM}\b|\bkontrastsiz"
)
_POST = rf"\bpost[- ]*(({_NEXT}|fs|fat ?sat)\b|$)"
_AFTER = re.compile(
    rf"\+ ?{_MEDIUM}\b|\bc ?\+|{_POST}|\b(gd|km|ce|t1ce|t1c)\b|"
    r"\bgad|kontrast|contrast|\bmdc\b|\b(after|apres|nach|despues|dopo)\b|\binj|"
    "dotarem|prohance|magnevist|clariscan|multihance|omniscan|eovist|primovist|elucirem"
)
_NO_AGENT = re.compile(
    r"(no|non|none|not|nil|without|w/?o|kein\w*|nein|sans|ohne|sin|null|unknown|n|n\.?[/ ]?a\.?|-+)(?!\w).*|"
    r"(pre|before|plain|unenhanced|nati[vf]e?)([- ]*([ck]ontrast\w*|gd|gad\w*|km|t1|mri?|scan|only))*|"
    r"0([ .]*0*) ?(ml|cc|mmol.*|unit.*)?"
)
# letters that have no form without an accent
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "\u0131": "i", "æ": "ae", "ß": "ss"})
_NOT_TOLD = re.compile(r"(unknown|null|n\.?[/ ]?a\.?|-+|not (applicable|specified|available)|)\.?")


@dataclass(frozen=True)
class Parameters:
    """Of a sequence, as its header tells them; None or empty: not told.

    Args:
        tr: repetition time, ms.
        te: echo time, ms.
        ti: inversion time, ms.
        flip: angle, degrees.
        kind: of (0018,0020) Scanning Sequence: SE, IR, GR, EP, RM.
        variant: of (0018,0021) Sequence Variant.
        three_d: whether it was measured in 3-D.
        agent: contrast agent, "" where none is named.
        image_type: of (0008,0008).
        b_value: of diffusion, s/mm2.
        words: description, name of the protocol and of the sequence.
    """

    tr: float | None = None
    te: float | None = None
    ti: float | None = None
    flip: float | None = None
    kind: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    three_d: bool = False
    agent: str = ""
    image_type: tuple[str, ...] = ()
    b_value: float | None = None
    words: str = ""

    @property
    def times(self) -> str:
        """For a message, e.g. "TR 9000, TE 100, TI 2500"."""
        return ", ".join(f"{name} {'-' if value is None else f'{value:.4g}'}" for name, value in self._times())

    def _times(self) -> list[tuple[str, float | None]]:
        some = [("TR", self.tr), ("TE", self.te)]
        return [*some, ("TI", self.ti)] if self.ti else some


@dataclass(frozen=True)
class Verdict:
    """What a sequence is.

    Args:
        contrast: T1 (before or after contrast medium), T2 or FLAIR; "" for another.
        why: the reasons, for the user.
        doubt: why it must not be taken unasked; "" if nothing speaks against it.
    """

    contrast: str
    why: str
    doubt: str = ""


def judge(parameters: Parameters) -> Verdict:
    """The contrast of a sequence; a doubt where parameters and description disagree or only the description tells."""
    words = _plain(parameters.words)
    other = _other(parameters, words)
    if other:
        return Verdict("", other)
    t1, t2, flair = (bool(re.search(_HINTS[contrast], words)) for contrast in ("T1", "T2", "FLAIR"))
    hint = "T1" if t1 and not t2 else "FLAIR" if flair else "T2" if t2 and not t1 else ""  # "T2 FLAIR" is a FLAIR
    found, why = _by_times(parameters)
    if found == "inversion" and hint:  # FLAIR and STIR differ in TI alone
        return Verdict(hint, f"{parameters.times}, no TI; {hint} by its description")
    if not found or found == "inversion":
        if not hint:
            return Verdict("", why)
        return Verdict(hint, why, f"{hint} by its description alone: {why}")
    if hint and hint != found:
        return Verdict(found, why, f"{why}: {found}, but its description says {hint}")
    if found == "T1" and not t1 and why.startswith("gradient echo,"):
        return Verdict(found, why, f"{why}: a T1 or an angiography, and no description says T1")
    return Verdict(found, why)


def contrast_medium(parameters: Parameters) -> tuple[bool | None, str]:
    """Whether contrast medium had been given (None: nothing tells), and what tells it.

    Where agent and description contradict each other the answer is None, and the text says so.
    """
    words = _plain(parameters.words)
    agent = parameters.agent.strip()
    told = agent.lower()
    named = not (_NO_AGENT.fullmatch(told) if told else True)
    before, after = bool(_BEFORE.search(words)), bool(_AFTER.search(_BEFORE.sub(" ", words)))
    if named and before and not after:
        return None, "a contrast agent is named, but the description says before contrast medium"
    if named:
        return True, "contrast agent named"
    if after and not before:
        if agent:
            return None, f"contrast agent {agent}, but the description says after contrast medium"
        return True, "after contrast medium by its description"
    if not _NOT_TOLD.fullmatch(told):
        return False, f"contrast agent {agent}"
    if before and not after:
        return False, "before contrast medium by its description"
    return None, "no contrast agent named"


def _plain(words: str) -> str:
    """Lower case without accents, with spaces between words."""
    letters = unicodedata.normalize("NFKD", words.lower().translate(_LETTERS))
    return re.sub(r"[_/\\,;:()\[\]]+", " ", "".join(c for c in letters if not unicodedata.combining(c)))


def _other(parameters: Parameters, words: str) -> str:
    """A contrast that is none of the four, "" if nothing says so."""
    if parameters.b_value:  # 0 stands in series that are no diffusion, too
        return f"diffusion (b {parameters.b_value:g})"
    # what follows "ORIGINAL\PRIMARY" in the image type
    kinds = " ".join(_plain(token) for token in parameters.image_type[2:])
    for name, pattern in _OTHER.items():
        if re.search(pattern, kinds):
            return f"{name}, by its image type"
        if re.search(pattern, words):
            return f"{name}, by its description"
    parts = {token.upper() for token in parameters.image_type[2:]}
    for token, name in {"P": "phase", "R": "real part", "I": "imaginary part"}.items():
        if token in parts:
            return f"{name} image"
    return ""


def _by_times(p: Parameters) -> tuple[str, str]:
    """T1, T2, FLAIR, "inversion" (of unknown time), or "" for what is none of them; and the words for it."""
    told = p.times
    if p.tr is None or p.te is None:
        return "", f"{'TR' if p.tr is None else 'TE'} is not given"
    if "EP" in p.kind:
        return "", f"echo-planar, {told}"
    if "GR" in p.kind and "SE" not in p.kind:
        if p.te > 12:
            return "", f"gradient echo, {told}: T2*"
        prepared = bool(p.ti and p.ti < 1500) or "MP" in p.variant or "IR" in p.kind
        if prepared or p.tr <= 50 or (p.tr <= 600 and (p.flip or 90) >= 40):
            return "T1", f"gradient echo{' after inversion' if prepared else ''}, {told}"
        return "", f"gradient echo, {told}"
    if p.ti or "IR" in p.kind:
        if not p.ti:
            return ("inversion" if p.tr >= 4000 and p.te >= 50 else ""), f"inversion recovery, {told}, no TI"
        if p.ti >= 1400 and p.te >= 50 and p.tr >= 3500:
            return "FLAIR", f"inversion recovery, {told}"
        if 350 <= p.ti < 1400 and p.te <= 50:
            return "T1", f"inversion recovery, {told}"
        return "", f"inversion recovery, {told}: {'STIR' if p.ti < 350 else 'none of the four'}"
    if p.tr <= 1200 and p.te <= 35:
        return "T1", told
    if p.tr >= 1800 and p.te >= 60:
        return "T2", told
    return "", f"{told}: {'proton density' if p.tr >= 1800 else 'none of the four'}"
