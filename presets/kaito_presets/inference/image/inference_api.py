"""What a preset image has at ``/workspace/tfs/inference_api.py``: the path by which pods start the server.

KAITO's published images have their own server there; ours have this file. It stands alone in its folder, because Python
puts the folder of a script on its search path.
"""

import sys

from kaito_presets.inference.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
