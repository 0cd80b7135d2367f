"""What is wrong with a set of episodes, before a GPU hour is spent on it: each finding with its numbers and its fix.

checks.lint                the whole list -> report.Report
settings.LintConfig        which features, what is declared, the limits
declared                   settings from the row of an embodiment, and where a set contradicts its row
numbers                    NaN, constant dims, outliers, declared widths
lengths                    chunks longer than episodes, shares of frames in which nothing is done
actions, frames            delta or absolute, swapped dims, signs, time shift, tool frame, gripper
timing                     control frequency
pictures                   missing, black, frozen, duplicated cameras
words                      instructions
replay                     recorded actions in a simulator
"""
