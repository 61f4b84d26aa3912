// node docs-page.mjs CHROMIUM BIN PNG holds /docs of BIN/jelou-facade to what a person needs of it, and takes a picture of it.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { launch, serve } from './launch.mjs';

const [executablePath, bin, path] = process.argv.slice(2);
const facade = join(bin, 'jelou-facade');

const browser = await launch(executablePath);

// open opens the page under a name that is not this machine's, as people do, and answers nothing that is asked of others.
async function open(rest) {
  const address = rest.replace('127.0.0.1', 'facade.test');
  const page = await browser.newPage({ viewport: { width: 1280, height: 1000 } });
  page.setDefaultTimeout(20_000);
  const wrong = [];
  const outside = (url) => url.protocol !== 'data:' && url.origin !== address;
  await page.route(outside, (route) => (wrong.push(`asked others for ${route.request().url()}`), route.abort()));
  page.on('pageerror', (error) => wrong.push(`${error}`));
  page.on('console', (message) => message.type() === 'error' && wrong.push(`${message.text()} ${message.location().url}`));
  await page.goto(`${address}/docs`);
  await page.locator('.opblock').first().waitFor();
  return { page, wrong, address };
}

// execute tries an operation with its example, or another body, and returns the status and the answer that are shown.
async function execute(page, operation, body) {
  const block = page.locator(`[id$="-${operation}"]`);
  if (!(await block.locator('.opblock-body').count())) {
    await block.locator('.opblock-summary').click();
    await block.getByRole('button', { name: 'Try it out' }).click();
    await block.locator('tr[data-param-name="bot_id"] input').fill('demo');
  }
  if (body) await block.locator('textarea.body-param__text').fill(body);
  const answered = page.waitForResponse((response) => response.url().includes('/v1/'));
  await block.getByRole('button', { name: 'Execute', exact: true }).click();
  const status = (await answered).status();
  const shown = block.locator('.live-responses-table .response').filter({ hasText: new RegExp(`^\\s*${status}`) });
  await shown.waitFor();
  return { block, status, answer: await shown.innerText() };
}

const folder = mkdtempSync(join(tmpdir(), 'docs-page-'));
try {
  await serve(facade, ['--sandbox'], 'REST', async (rest) => {
    const { page, wrong, address } = await open(rest);
    const { paths } = await (await fetch(`${rest}/openapi.json`)).json();
    const operations = Object.values(paths).flatMap((methods) => Object.values(methods).map((operation) => operation.operationId));
    for (const operation of operations) assert.equal(await page.locator(`[id$="-${operation}"]`).count(), 1, operation);

    const sent = await execute(page, 'SendMessage');
    assert.equal(sent.status, 200, sent.answer);
    assert.match(sent.answer, /"state": "SENT"/);
    await page.evaluate(() => scrollTo(0, 0)); // boxes are the window's, the clip is the page's
    const [top, end] = [await sent.block.boundingBox(), await sent.block.locator('.live-responses-table').boundingBox()];
    await page.screenshot({ path, fullPage: true, clip: { ...top, height: end.y + end.height - top.y } });

    assert.deepEqual(wrong, []);
    const refused = await execute(page, 'SendMessage', '{"user_id": "593991234567", "message": {"text": {"texto": "hola"}}}');
    assert.equal(refused.status, 400);
    assert.match(refused.answer, /"reason": "INVALID_FIELD"/);
    assert.deepEqual(wrong.filter((one) => !one.includes('status of 400')), []); // the browser names every answer that is an error
    console.log(`${address}: ${operations.length} operations; SendMessage ${sent.status} SENT, a wrong field ${refused.status} INVALID_FIELD`);
    await page.close();
  });

  const made = execFileSync(facade, ['caller', 'new', 'orders'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  const hash = execFileSync(facade, ['caller', 'hash'], { encoding: 'utf8', input: made }).trim();
  writeFileSync(join(folder, 'id'), 'nobody\n', { mode: 0o600 });
  writeFileSync(join(folder, 'facade.yaml'), `
admin: {address: "127.0.0.1:0"}
log: {level: WARN}
ledger: {path: ledger.db}
companies: [{id: shop, base_url: "http://127.0.0.1:9", client_id_file: id, client_secret_file: id, bots: [demo]}]
callers: [{name: orders, keys: [{sha256: ${hash}}], companies: [shop]}]
`);
  await serve(facade, ['--config', join(folder, 'facade.yaml')], 'REST', async (rest) => {
    const { page, wrong } = await open(rest);
    const without = await execute(page, 'GetCapacity');
    assert.equal(without.status, 401, without.answer);
    await page.getByRole('button', { name: 'Authorize' }).first().click();
    const form = page.locator('.auth-container').filter({ hasText: 'callerKey' });
    await form.locator('input').fill(made);
    await form.getByRole('button', { name: 'Apply credentials' }).or(form.locator('button.authorize')).first().click();
    await page.locator('.modal-ux .close-modal').click();
    const capacity = await execute(page, 'GetCapacity');
    assert.equal(capacity.status, 200, capacity.answer);
    assert.deepEqual(wrong.filter((one) => !one.includes('status of 401')), []);
    console.log(`with callers: GetCapacity ${without.status}, after Authorize ${capacity.status}`);
  });
} finally {
  await browser.close();
  rmSync(folder, { recursive: true });
}
