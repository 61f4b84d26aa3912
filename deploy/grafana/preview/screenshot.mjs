// node screenshot.mjs CHROMIUM ADDRESS PNG takes a picture of the page once all panels are drawn.
import { chromium } from 'playwright-core';

const [executablePath, address, path] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  args: ['--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const page = await browser.newPage({ viewport: { width: 1600, height: 1000 } });
  page.on('pageerror', (error) => console.error(error));
  await page.goto(address);
  await page.locator('.panel').first().waitFor();
  await page.locator('.panel:not(:has(canvas, .message))').first().waitFor({ state: 'detached' });
  await page.waitForTimeout(2000); // legends have their size only now, and give the rest to the plots
  await page.screenshot({ path, fullPage: true });
  for (const panel of await page.locator('.panel:has(.message)').all()) {
    console.log(await panel.innerText());
  }
} finally {
  await browser.close();
}
