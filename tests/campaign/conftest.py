"""The fixture that several parts of the campaign share."""

from forked import stages as stages
