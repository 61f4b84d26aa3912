// node terminal.mjs CHROMIUM BIN PNG takes a picture of jelouctl's live view on a terminal of 100 columns, while a file is sent.
import { spawn, execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launch, serve } from './launch.mjs';

const [executablePath, bin, path] = process.argv.slice(2);
const folder = mkdtempSync(join(tmpdir(), 'terminal-'));
const browser = await launch(executablePath);
try {
  await serve(join(bin, 'jelou-facade'), ['--sandbox'], 'gRPC', async (address) => {
    const env = { ...process.env, HOME: folder, XDG_CONFIG_HOME: folder, XDG_STATE_HOME: folder, TERM: 'xterm', JELOUCTL_ADDRESS: address, JELOUCTL_BOT: 'demo' };
    const numbers = Array.from({ length: 400 }, (_, i) => `${593990000000 + i}`);
    writeFileSync(join(folder, 'clients.csv'), `phone\n${numbers.join('\n')}\n`);
    const jelouctl = join(bin, 'jelouctl');
    execFileSync(jelouctl, ['batch', 'send', join(folder, 'clients.csv'), '--map', 'user_id=phone', '--template', 'order_ready', '--param', 'Lucía', '--param', '991', '--language', 'es', '--detach'], { env, stdio: 'ignore' });

    // script gives the program a terminal; the view ends after ten seconds of sending, and the picture is what it showed last.
    const view = spawn('script', ['-qfec', `stty cols 100 rows 16; exec timeout --foreground -s KILL 10 ${jelouctl} capacity`, '/dev/null'], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    let written = '';
    for await (const piece of view.stdout.setEncoding('utf8')) written += piece;

    const page = await browser.newPage({ viewport: { width: 1000, height: 600 } });
    await page.setContent('<body style="margin: 0; background: #000"><div id="screen" style="padding: 12px; display: inline-block"></div>');
    await page.addStyleTag({ path: 'node_modules/@xterm/xterm/css/xterm.css' });
    await page.addScriptTag({ path: 'node_modules/@xterm/xterm/lib/xterm.js' });
    await page.evaluate((written) => new Promise((drawn) => {
      const terminal = new Terminal({ cols: 100, rows: 16, fontSize: 15, fontFamily: 'monospace' });
      terminal.open(document.getElementById('screen'));
      terminal.write(written, () => requestAnimationFrame(() => requestAnimationFrame(drawn)));
    }), written);
    await page.locator('#screen').screenshot({ path });
  });
} finally {
  await browser.close();
  rmSync(folder, { recursive: true });
}
