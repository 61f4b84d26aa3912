import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';

// launch starts Chromium, for which facade.test is this machine.
export const launch = (executablePath) => chromium.launch({
  executablePath,
  args: ['--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--host-resolver-rules=MAP facade.test 127.0.0.1'],
});

// serve starts jelou-facade on free ports, calls use with what it prints of where it listens, of REST or of gRPC, and ends it.
export async function serve(facade, args, side, use) {
  const server = spawn(facade, ['serve', '--grpc-addr', '127.0.0.1:0', '--http-addr', '127.0.0.1:0', ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    for await (const line of createInterface({ input: server.stdout })) {
      const found = line.match(new RegExp(`${side} +(\\S+)`));
      if (found) return await use(found[1]);
    }
    throw new Error('the server ended before it said where it listens');
  } finally {
    if (server.kill()) await new Promise((ended) => (server.exitCode === null ? server.once('exit', ended) : ended()));
  }
}
