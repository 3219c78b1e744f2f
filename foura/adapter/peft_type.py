"""FOURA as a member of PEFT's enum of methods.

PEFT looks every method up by its `PeftType` member and has no entry points for other packages; `register_peft_method`
requires a member of that name. A `str` enum cannot be subclassed, so the member is added to the enum itself, once.
"""

from peft import PeftType


def foura_peft_type() -> PeftType:
    """The member `PeftType.FOURA`, added on the first call; `PeftType("FOURA")` and pickling work with it."""
    existing = PeftType.__members__.get("FOURA")
    if existing is not None:
        return existing
    member = str.__new__(PeftType, "FOURA")
    member._name_ = "FOURA"
    member._value_ = "FOURA"
    PeftType._member_names_.append("FOURA")
    PeftType._member_map_["FOURA"] = member
    PeftType._value2member_map_["FOURA"] = member
    type.__setattr__(PeftType, "FOURA", member)
    hashable = getattr(PeftType, "_hashable_values_", None)  # Python 3.12 and later look values up here too
    if hashable is not None:
        hashable.append("FOURA")
    return member
