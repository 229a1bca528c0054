import torch.distributed as d, time, threading, subprocess, sys, os
from datetime import timedelta
if len(sys.argv)>1:
    s=d.TCPStore("127.0.0.1",int(sys.argv[1]),is_master=True,wait_for_workers=False); print("up",flush=True); time.sleep(2); os._exit(0)
p=subprocess.Popen([sys.executable,"storeloss.py","29777"],stdout=subprocess.PIPE); p.stdout.readline()
c=d.TCPStore("127.0.0.1",29777,is_master=False,wait_for_workers=False,timeout=timedelta(seconds=5))
t=time.time()
try: c.wait(["x"],timedelta(days=20))
except Exception as e: print(type(e),str(e)[:200],time.time()-t)
t=time.time()
try: c=d.TCPStore("127.0.0.1",29777,is_master=False,wait_for_workers=False,timeout=timedelta(seconds=3))
except Exception as e: print(type(e),str(e)[:200],time.time()-t)
