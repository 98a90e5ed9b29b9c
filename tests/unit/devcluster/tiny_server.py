"""The smallest HTTP server that starts at once: answers every request with a word and the name of its pod."""

import os
import socket
import sys

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((os.environ["KAITO_HOST"], int(sys.argv[1])))
listener.listen()
while True:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        body = f"{sys.argv[2]} from {os.environ['HOSTNAME']}".encode()
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
