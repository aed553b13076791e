"""What each op makes of channels that are multiples of maps.

Owns the table PROFILE_RULES and its rules in families. A positive factor passes through what is homogeneous
(SCALING_RULES knows), any factor through what is linear; everything else that treats all channels alike passes channels
of one factor on as copies of one another. Read ``at.py`` first: what a rule gets, and what it returns.
"""
