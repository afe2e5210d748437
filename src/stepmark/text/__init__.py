"""Text in, text out: steps, answers, prompts, verdicts, rationales, grades of one text. No files, no torch."""
