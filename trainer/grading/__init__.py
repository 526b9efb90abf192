"""Is a response right? Boxed answers, math-verify in processes of its own."""
