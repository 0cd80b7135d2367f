"""What a recipe would need and do on devices that are not here: memory, operations, traffic, step time, utilization.

recipe -- program --> the step that `fit` runs, on abstract arrays -- compile --> optimized HLO -- cost --> Cost
Cost, Chip -- roofline --> StepTime -- planner --> Plan -- report --> Markdown, JSON
"""
