"""Whether two sets of references are the same: then, and only then, their scores compare.

    same_references(first["references"], second["references"])      of two score files
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, Mapping, Optional, Sequence


def references_hashes(references: Mapping[str, Sequence[str]]) -> Dict[str, str]:
    """What a score file says of the references by picture that it was made against.

    Returns:
        `sha256`: equal for equal captions of equal pictures, the captions of a picture in the
        same order (all that older versions wrote). `sha256_any_order`: equal in any order.
    """
    return {"sha256": _hash_of(references, list), "sha256_any_order": _hash_of(references, sorted)}


def same_references(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two score files' 'references' are the same, in whatever order they were listed."""
    return any(first.get(key) is not None and first.get(key) == second.get(key)
               for key in ("sha256", "sha256_any_order"))


def references_key(hashes: Mapping[str, Any]) -> Optional[str]:
    """What stands for the references in a table: equal in any order, where that is known."""
    return hashes.get("sha256_any_order") or hashes.get("sha256")


def _hash_of(references: Mapping[str, Sequence[str]], order: Any) -> str:
    text = json.dumps(sorted([key, order(texts)] for key, texts in references.items()))
    return hashlib.sha256(text.encode()).hexdigest()
