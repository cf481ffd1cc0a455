"""What Megatron's flags do here: which are refused or change nothing, which numbers they take."""
