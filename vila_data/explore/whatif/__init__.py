"""`whatif`: what other rules would give, from columns alone; one setting, or a sweep over many."""
