"""What this machine and asyncio give: clocks, processes, waiting, interrupting. Nothing here knows
of clusters or SQL."""
