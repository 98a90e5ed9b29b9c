"""One program per participant. They run in environments of their own: nothing here imports more than the standard
library and the participant itself."""
