// See scripts/screenshots. Fails when the page reports a mistake or asks for anything from elsewhere.
const { chromium } = require('playwright-core');

const SIZES = [['desk', 1440, 1000], ['phone', 390, 844]];

async function main(url, out) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, headless: true, args: ['--no-sandbox', '--disable-gpu', '--disable-quic',
    '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'] });
  const bad = [];
  for (const [name, width, height] of SIZES)
    for (const colorScheme of ['light', 'dark']) {
      const page = await browser.newPage({ viewport: { width, height }, colorScheme });
      page.on('console', m => m.type() === 'error' && bad.push(m.text()));
      page.on('pageerror', e => bad.push(String(e)));
      page.on('request', r => new URL(r.url()).origin === new URL(url).origin || bad.push('asked elsewhere: ' + r.url()));
      await page.goto(url);
      await page.waitForSelector('#versions table, #versions .empty');
      await page.waitForSelector('#live.on');
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      if (wide > 0) bad.push(`${name}: the page is ${wide} px wider than the window`);
      await page.screenshot({ path: `${out}/dashboard-${name}-${colorScheme}.png`, fullPage: !!process.env.FULL_PAGE });
      await page.close();
    }
  await browser.close();
  if (bad.length) throw new Error(bad.join('\n'));
}

main(...process.argv.slice(2)).catch(error => { console.error('screenshots: ' + error.message); process.exit(1); });
