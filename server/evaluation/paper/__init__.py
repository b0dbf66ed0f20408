"""The evaluation of the nudging paper: its tasks, prompts, scorers, judge and analyses."""
