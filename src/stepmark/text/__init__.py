"""Functions of text: steps, answers, prompts, verdicts, rationales, and the grade of a text. No files, no torch."""
