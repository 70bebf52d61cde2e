"""ToolWOZ: the tools, tasks and scoring made from MultiWOZ, and a city of our own."""
