"""Words and actions to tokens and back."""
