# Sends monitor and manager commands, one JSON request a line, one JSON answer
# a line: the command-line tool needs most of a second for each start.
import json
import sys

import rados

conf, name = sys.argv[1], sys.argv[2]
cluster = rados.Rados(conffile=conf, name=name)
cluster.connect(timeout=60)
for line in sys.stdin:
    req = json.loads(line)
    send = cluster.mgr_command if req["target"] == "mgr" else cluster.mon_command
    try:
        rc, out, err = send(json.dumps(req["cmd"]), req.get("input", "").encode(), timeout=60)
        answer = {"rc": rc, "out": out.decode("utf-8", "replace"), "err": err}
    except Exception as e:
        answer = {"rc": -(getattr(e, "errno", 0) or 5), "out": "", "err": str(e)}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
