import { chromium } from 'playwright-core';

// launch starts Chromium, for which facade.test is this machine.
export const launch = (executablePath) => chromium.launch({
  executablePath,
  args: ['--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--host-resolver-rules=MAP facade.test 127.0.0.1'],
});
