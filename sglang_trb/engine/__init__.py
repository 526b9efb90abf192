"""Everything that touches SGLang; nothing outside this package does. `touch_points.table` lists where, and why."""
