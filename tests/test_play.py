"""The two pages that can be touched: their numbers are the package's and Gymnasium's, and every control does its work.

Not here: how they stand in the built site (`test_site.py`).
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from docs.play import agents, knobs
from sb3_simple_ddpg import SimpleDDPG
from sb3_simple_ddpg.experiment import engines
from sb3_simple_ddpg.experiment import report as comparison_report
from sb3_simple_ddpg.experiment.worker import execute_or_explain

ROOT = Path(__file__).parent.parent
FILES = ROOT / "docs" / "_static" / "play"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no browser: apt-get install chromium")
WIDTHS = pytest.mark.parametrize("width", [1280, 390])

pytestmark = pytest.mark.slow


def stored(name: str) -> Any:
    """What a script of the page assigns."""
    return json.loads((FILES / name).read_text("utf-8").partition("=")[2].strip().rstrip(";"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Callable]:
    """Opens what a page of docs/ embeds, from file://; at the end no console message may have come."""
    said: list[str] = []
    contexts = []

    def opened(name: str, width: int = 1280, weights: Path = FILES / "agents.js", **settings: Any) -> Any:
        embedded = re.findall(r"^<(?:link|div|script).*$", (ROOT / "docs" / f"{name}.md").read_text("utf-8"), re.M)
        html = "\n".join(embedded).replace('"_static/play/agents.js', f'"{weights.as_uri()}')
        html = html.replace('"_static/', f'"{(ROOT / "docs" / "_static").as_uri()}/')
        head = '<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        (tmp_path / f"{name}.html").write_text(f"{head}<title>{name}</title>{html}", "utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 844}, **settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((tmp_path / f"{name}.html").as_uri(), wait_until="load")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []


# --- numbers ---------------------------------------------------------------------------------------------------------


@NEEDS_BROWSER
@pytest.mark.parametrize("state", [(2.5, -1.0), (0.1, 7.9), (-9.0, 0.5)], ids=["hanging", "fast", "wound up"])
def test_the_pendulum_of_the_page_moves_as_gymnasium_s(visit, state):
    torques = [((7 * i) % 41 - 20) / 8 for i in range(50)]  # from -2.5 to 2.5: some beyond the bounds of 2
    found = visit("play").evaluate(
        """([[angle, speed], torques]) => {
            let state = { angle, speed };
            return torques.map((torque) => {
                state = DDPG.step(state, torque);
                return [state.angle, state.speed, state.reward];
            });
        }""",
        [state, torques],
    )
    env = gym.make("Pendulum-v1").unwrapped
    env.reset()
    env.state = np.array(state)
    for torque, seen in zip(torques, found, strict=True):
        _, reward, *_ = env.step(np.array([torque], np.float32))
        assert seen == pytest.approx([*env.state, reward], abs=1e-5)


def model_of(weights: dict[str, list[str]]) -> SimpleDDPG:
    """A SimpleDDPG with the networks that the page has."""
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1", **agents.SETTINGS)
    for network, texts in ((model.actor.mu, weights["actor"]), (model.critic.qf0, weights["critic"])):
        network.load_state_dict({
            name: th.frombuffer(bytearray(agents.base64.b64decode(text)), dtype=th.float32).reshape(tensor.shape)
            for (name, tensor), text in zip(network.state_dict().items(), texts, strict=True)
        })  # fmt: skip
    return model


@pytest.fixture(scope="module")
def shipped() -> dict[str, SimpleDDPG]:
    return {timesteps: model_of(weights) for timesteps, weights in stored("agents.js").items()}


def states(count: int = 60) -> np.ndarray:
    draw = np.random.default_rng(0)
    angles, speeds = draw.uniform(-np.pi, np.pi, count), draw.uniform(-8, 8, count)
    return np.stack([np.cos(angles), np.sin(angles), speeds], axis=1).astype(np.float32)


def assert_the_page_has_the_numbers_of(models: dict[str, SimpleDDPG], page: Any) -> None:
    """Actions as `predict` gives them, and Q(s, a), to 1e-5; of Q, whose last digit may be larger, as a share too."""
    observations = states()
    actions = np.linspace(-1, 1, len(observations), dtype=np.float32)[:, None]
    asked = [observations.tolist(), actions[:, 0].tolist()]
    found = page.evaluate(
        """([observations, actions]) => Object.fromEntries(Object.entries(DDPG_AGENTS).map(([name, weights]) => {
            const agent = DDPG.agent(weights);
            const answers = (s, i) => [DDPG.MAX_TORQUE * DDPG.mu(agent, s), DDPG.q(agent, s, actions[i])];
            return [name, observations.map(answers)];
        }))""",
        asked,
    )
    assert found.keys() == models.keys()
    for name, model in models.items():
        torques, q_values = np.array(found[name]).T
        np.testing.assert_allclose(torques, model.predict(observations, deterministic=True)[0][:, 0], rtol=0, atol=1e-5)
        with th.no_grad():
            expected = model.critic.q1_forward(th.as_tensor(observations), th.as_tensor(actions)).numpy()[:, 0]
        np.testing.assert_allclose(q_values, expected, rtol=1e-5, atol=1e-5)


@NEEDS_BROWSER
def test_shipped_agents_answer_in_the_page_as_predict_and_the_critic_do(visit, shipped):
    assert [*shipped] == [str(timesteps) for timesteps in agents.KEPT]
    assert_the_page_has_the_numbers_of(shipped, visit("play"))


@NEEDS_BROWSER
def test_an_agent_that_is_written_now_answers_as_the_model_that_was_trained(visit, tmp_path):
    model = SimpleDDPG("MlpPolicy", "Pendulum-v1", **agents.SETTINGS).learn(150)
    agents.write({150: agents.weights_of(model)}, tmp_path / "agents.js")
    assert_the_page_has_the_numbers_of({"150": model}, visit("play", weights=tmp_path / "agents.js"))


def test_the_command_writes_one_agent_for_each_time_and_the_first_is_untrained(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "KEPT", (0, 110))
    monkeypatch.setattr(agents.train, "__defaults__", ((0, 110),))
    agents.main(["--out", str(tmp_path / "agents.js")])
    found = json.loads((tmp_path / "agents.js").read_text().partition("=")[2].rstrip(";\n"))
    assert [*found] == ["0", "110"]
    untrained = SimpleDDPG("MlpPolicy", "Pendulum-v1", **agents.SETTINGS)
    assert found["0"] == agents.weights_of(untrained)
    assert found["110"] != found["0"]
    assert found["0"] == stored("agents.js")["0"]  # the shipped ones come from the same settings


def test_shipped_agents_do_what_the_page_says_of_them(shipped):
    env = Monitor(gym.make("Pendulum-v1"))
    env.reset(seed=0)
    returns = {name: evaluate_policy(model, env, 10)[0] for name, model in shipped.items()}
    assert returns["0"] < -900
    assert returns["0"] < returns["5000"] < returns["20000"]
    assert returns["20000"] > -250  # solved, say most, from -200 on; ten starts give or take 50


# --- the pendulum's page ---------------------------------------------------------------------------------------------


def value(page: Any, name: str) -> float:
    text = page.get_attribute(f'td[data-name="{name}"]', "data-value")
    return math.nan if text == "" else float(text)


def arm(page: Any) -> str:
    return page.get_attribute(".play-pendulum g", "transform")


def stop(page: Any) -> None:
    page.get_by_role("button", name="Pause").click()


def observed(page: Any) -> np.ndarray:
    angle = math.radians(value(page, "angle"))
    return np.array([[math.cos(angle), math.sin(angle), value(page, "speed")]], np.float32)


@NEEDS_BROWSER
@WIDTHS
def test_the_first_movement_comes_within_a_second(visit, width):
    page = visit("play", width)
    first = arm(page)
    page.wait_for_function("first => document.querySelector('.play-pendulum g').getAttribute('transform') !== first",
                           arg=first, timeout=1_000)  # fmt: skip
    page.wait_for_function("Number(document.querySelector('td[data-name=timestep]').dataset.value) >= 8", timeout=5_000)


@NEEDS_BROWSER
@WIDTHS
def test_pause_and_one_timestep_make_the_step_that_gymnasium_makes(visit, width):
    page = visit("play", width)
    stop(page)
    still, timestep = arm(page), value(page, "timestep")
    page.wait_for_timeout(300)
    assert (arm(page), value(page, "timestep")) == (still, timestep)

    env = gym.make("Pendulum-v1").unwrapped
    env.reset()
    env.state = np.array([math.radians(value(page, "angle")), value(page, "speed")])
    torque, before = 2 * value(page, "action"), value(page, "sum")
    page.get_by_role("button", name="One timestep").press("Enter")
    _, reward, *_ = env.step(np.array([torque]))
    assert value(page, "timestep") == timestep + 1
    assert value(page, "reward") == pytest.approx(reward, abs=1e-5)
    assert value(page, "sum") == pytest.approx(before + reward, abs=1e-5)
    assert value(page, "speed") == pytest.approx(env.state[1], abs=1e-5)
    assert math.cos(math.radians(value(page, "angle"))) == pytest.approx(math.cos(env.state[0]), abs=1e-5)

    page.get_by_role("button", name="Go on").click()
    page.wait_for_function("before => document.querySelector('.play-pendulum g').getAttribute('transform') !== before",
                           arg=arm(page), timeout=1_000)  # fmt: skip


@NEEDS_BROWSER
@WIDTHS
def test_each_agent_shows_its_own_choice_and_the_critic_s_curve(visit, shipped, width):
    page = visit("play", width)
    stop(page)
    page.get_by_role("radio", name="random weights").focus()
    for timesteps in ("0", "2000", "5000", "20000"):
        if timesteps != "0":
            page.keyboard.press("ArrowDown")
        else:
            page.get_by_role("radio", name="random weights").check()
        assert page.get_attribute("input[name=play-agent]:checked", "value") == timesteps
        model, observation = shipped[timesteps], observed(page)
        with th.no_grad():
            grid = th.linspace(-1, 1, 41).reshape(-1, 1)
            choice = model.actor(th.as_tensor(observation))
            curve = model.critic.q1_forward(th.as_tensor(observation).expand(41, -1), grid).flatten()
            chosen = model.critic.q1_forward(th.as_tensor(observation), choice).item()
        assert value(page, "mu") == pytest.approx(choice.item(), abs=1e-5)
        assert value(page, "q") == pytest.approx(chosen, rel=1e-5, abs=1e-5)
        assert value(page, "best") == pytest.approx(curve.max().item(), rel=1e-5, abs=1e-5)
        drawn = np.array(re.findall(r"[ML]([\d.]+) ([\d.-]+)", page.get_attribute(".play-curve", "d")), float)
        np.testing.assert_allclose(drawn[:, 0], 48 + 302 * np.linspace(0, 1, 41), atol=0.01)
        # The curve on the screen is Q turned upside down, in pixels: as straight a map as there is.
        height = np.polyfit(curve.numpy(), drawn[:, 1], 1)
        np.testing.assert_allclose(np.polyval(height, curve.numpy()), drawn[:, 1], atol=0.02)
        assert height[0] < 0
        dot = page.locator(".play-chosen")
        assert float(dot.get_attribute("cx")) == pytest.approx(48 + 151 * (choice.item() + 1), abs=0.01)
        assert float(dot.get_attribute("cy")) == pytest.approx(np.polyval(height, chosen), abs=0.05)
        assert f"after {int(timesteps):,} timesteps" in page.inner_text("[role=status]") or timesteps == "0"


@NEEDS_BROWSER
@WIDTHS
def test_noise_moves_the_applied_action_and_not_the_actor_s_choice(visit, width):
    page = visit("play", width)
    stop(page)
    page.get_by_role("radio", name="after 2,000 timesteps").check()
    assert value(page, "action") == value(page, "mu")
    choice = value(page, "mu")
    slider = page.get_by_role("slider", name="Noise")
    slider.focus()
    differences = []
    for _ in range(6):
        page.keyboard.press("ArrowRight")
        assert value(page, "mu") == choice
        assert -1 <= value(page, "action") <= 1
        differences.append(abs(value(page, "action") - choice))
    assert page.inner_text("output") == "0.30"
    page.keyboard.press("End")
    assert page.inner_text("output") == "0.50"
    assert max(differences) > 0
    page.keyboard.press("Home")
    assert value(page, "action") == choice


@NEEDS_BROWSER
@WIDTHS
def test_a_push_adds_two_radians_a_second_by_key_mouse_and_touch(visit, width):
    page = visit("play", width, has_touch=True)
    stop(page)
    page.get_by_label("Start", exact=True).select_option("upright")
    page.get_by_role("button", name="Start again").click()
    assert (value(page, "angle"), value(page, "speed"), value(page, "timestep"), value(page, "sum")) == (0, 0, 0, 0)
    page.get_by_role("button", name="Push counter-clockwise").press("Space")
    assert value(page, "speed") == 2
    page.get_by_role("button", name="Push clockwise").click()
    assert value(page, "speed") == 0
    page.locator(".play-pendulum").scroll_into_view_if_needed()
    box = page.locator(".play-pendulum").bounding_box()
    page.touchscreen.tap(box["x"] + 0.7 * box["width"], box["y"] + 0.5 * box["height"])
    assert value(page, "speed") == -2
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.5 * box["height"])
    assert value(page, "speed") == 2  # after a tap and a click on the left half
    assert page.inner_text("[role=status]").startswith("Pushed counter-clockwise.")
    page.get_by_role("button", name="One timestep").click()
    assert value(page, "angle") > 0  # counter-clockwise is positive
    assert float(re.search(r"rotate\((.*)\)", arm(page))[1]) < 0  # and negative in SVG


@NEEDS_BROWSER
def test_starts_are_hanging_upright_and_anywhere(visit):
    page = visit("play")
    stop(page)
    choice, again = page.get_by_label("Start", exact=True), page.get_by_role("button", name="Start again")
    again.click()
    assert abs(value(page, "angle")) == pytest.approx(180)
    choice.select_option("anywhere")
    angles = set()
    for _ in range(5):
        again.click()
        angles.add(value(page, "angle"))
        assert -1 <= value(page, "speed") <= 1
    assert len(angles) == 5


@NEEDS_BROWSER
def test_after_200_timesteps_the_return_of_the_episode_stays_and_the_next_begins(visit, shipped):
    page = visit("play")
    stop(page)
    page.get_by_role("button", name="Start again").click()
    assert page.inner_text('td[data-name="last"]') == "none yet"
    step = page.get_by_role("button", name="One timestep").element_handle()
    page.evaluate("button => { for (let i = 0; i < 199; i++) button.click(); }", step)
    assert value(page, "timestep") == 199
    page.evaluate("button => button.click()", step)
    assert (value(page, "timestep"), value(page, "sum")) == (0, 0)
    assert "time limit of 200" in page.inner_text("[role=status]")

    env = gym.make("Pendulum-v1").unwrapped
    env.reset()
    env.state, total = np.array([math.pi, 0.0]), 0.0
    for _ in range(200):
        _, reward, *_ = env.step(shipped["20000"].predict(env._get_obs())[0])
        total += reward
    # Rounding grows on the way from the unstable balance, so not to 1e-5.
    assert value(page, "last") == pytest.approx(total, abs=3)


@NEEDS_BROWSER
@WIDTHS
def test_the_pendulum_stands_still_for_readers_who_asked_for_less_motion(visit, width):
    page = visit("play", width, reduced_motion="reduce")
    before = arm(page)
    page.wait_for_timeout(700)
    assert (arm(page), value(page, "timestep")) == (before, 0)
    assert "reduced motion" in page.inner_text("[role=status]")
    page.get_by_role("button", name="One timestep").click()
    assert value(page, "timestep") == 1
    page.get_by_role("button", name="Go on").click()  # who asks for motion, gets it
    page.wait_for_function("Number(document.querySelector('td[data-name=timestep]').dataset.value) > 1", timeout=2_000)


@NEEDS_BROWSER
@pytest.mark.parametrize("name", ["play", "knobs"])
@WIDTHS
def test_nothing_is_wider_than_the_screen_and_everything_has_a_name(visit, name, width):
    page = visit(name, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.query_selector_all("button, input, select"):
        assert control.evaluate("e => (e.labels?.[0]?.innerText || e.getAttribute('aria-label') || e.innerText).trim()")
    for picture in page.query_selector_all("svg"):
        assert picture.get_attribute("role") == "img"
        assert "same in numbers" in picture.get_attribute("aria-label")
    assert page.get_attribute("[role=status]", "aria-live") == "polite"
    low = page.eval_on_selector_all("button, select", "all => all.filter(e => e.getBoundingClientRect().height < 32)")
    assert not low  # a finger's width


def test_both_pages_are_small():
    """Below 300 KB beside what the site has."""
    pages = sum((ROOT / "docs" / f"{name}.md").stat().st_size for name in ("play", "knobs"))
    assert sum(path.stat().st_size for path in FILES.iterdir()) + pages < 150_000


# --- the page of the knobs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records() -> dict[str, Any]:
    return stored("records.js")


def glided(page: Any, measure: str, expected: list[float]) -> np.ndarray:
    """The points of a measure's curve in pixels, once it has come to stand where `expected` belongs."""
    page.wait_for_timeout(500)
    drawn = np.array(re.findall(r"[ML]([\d.]+) ([\d.-]+)", page.get_attribute(f"[data-measure={measure}]", "d")), float)
    assert len(drawn) == len(expected)
    return drawn


@NEEDS_BROWSER
@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=pytest.mark.long)])
def test_the_slider_shows_the_records_of_every_variant_of_every_knob(visit, records, width):
    page = visit("knobs", width)
    assert records["knobs"]
    for knob in records["knobs"].values():
        page.get_by_role("radio", name=knob["title"], exact=True).check()
        slider = page.get_by_role("slider", name=knob["title"])
        slider.focus()
        page.keyboard.press("Home")
        heights = []
        for at, (label, name) in enumerate(zip(knob["values"], knob["variants"], strict=True)):
            if at:
                page.keyboard.press("ArrowRight")
            assert slider.get_attribute("aria-valuetext") == page.inner_text("output") == label
            tables = records["variants"][name]
            words = page.inner_text("[role=status]").replace("\u2212", "-")
            assert words.startswith(f"{knob['title']}: {label}. Return at the end {round(tables['return'][1][-1])}, ")
            assert f"Q {tables['q'][1][-1]:.1f}, at its highest {max(tables['q'][3]):.1f}; " in words
            row = page.query_selector("tr.play-now")
            numbers = [float(cell.get_attribute("data-value")) for cell in row.query_selector_all("td")]
            final = [tables[measure][1][-1] for measure in ("return", "q", "saturation")]
            assert numbers == [final[0], final[1], max(tables["q"][3]), final[2]]
            drawn = glided(page, "return", tables["return"][1])
            heights.append((tables["return"][1], drawn[:, 1]))
            np.testing.assert_allclose(
                drawn[:, 0], 44 + 248 * np.array(tables["return"][0]) / records["timesteps"], atol=0.01
            )
        assert page.locator("tbody tr").count() == len(knob["values"])
        # One scale for all variants of a knob: pixels are one straight map of all their returns.
        returns, pixels = (np.concatenate(each) for each in zip(*heights, strict=True))
        np.testing.assert_allclose(np.polyval(np.polyfit(returns, pixels, 1), returns), pixels, atol=0.02)


@NEEDS_BROWSER
@pytest.mark.long  # as long as the page plays
def test_play_steps_through_the_variants_and_stops_at_the_last(visit, records):
    page = visit("knobs")
    values = next(iter(records["knobs"].values()))["values"]
    page.get_by_role("button", name="Play").click()
    assert page.inner_text("output") == values[0]
    before = page.get_attribute("[data-measure=q]", "d")
    page.wait_for_function("last => document.querySelector('output').innerText === last", arg=values[-1], timeout=9_000)
    page.get_by_role("button", name="Play").wait_for(timeout=1_000)
    page.wait_for_timeout(500)
    assert page.get_attribute("[data-measure=q]", "d") != before
    page.get_by_role("button", name="Play").click()
    page.get_by_role("button", name="Stop").click()
    assert page.inner_text("output") == values[0]


@NEEDS_BROWSER
def test_curves_do_not_glide_for_readers_who_asked_for_less_motion(visit):
    """The new curve is there before the next frame."""
    page = visit("knobs", reduced_motion="reduce")
    same = page.evaluate(
        """async () => {
            const curve = document.querySelector("[data-measure=q]");
            const slider = document.querySelector("input[type=range]");
            slider.value = 0;
            slider.dispatchEvent(new Event("input"));
            const at_once = curve.getAttribute("d");
            await new Promise((resolve) => setTimeout(resolve, 400));
            return at_once === curve.getAttribute("d");
        }"""
    )
    assert same


@pytest.fixture
def runs_in_this_process(monkeypatch):
    """A comparison starts a process for each run, and draws: that takes longer than the short runs of this test."""
    monkeypatch.setattr(comparison_report, "draw", lambda *_: {})
    monkeypatch.setattr(engines, "usable_cores", lambda: 1)
    monkeypatch.setattr(engines.LocalEngine, "run", lambda _, job: execute_or_explain(cloudpickle.dumps(job)))


def test_records_are_what_compare_and_the_log_say(tmp_path, monkeypatch, runs_in_this_process, capsys):
    monkeypatch.setattr(knobs, "CHANGES", {50: {**knobs.CHANGES[50], "limit": ("batch_size=8",)}})
    monkeypatch.setattr(knobs, "SHARED", ("all.policy_kwargs.net_arch=[4]",))
    out = tmp_path / "records.js"
    knobs.main(["--seeds", "2", "--timesteps", "200", "--folder", str(tmp_path), "--out", str(out)])
    capsys.readouterr()
    found = json.loads(out.read_text("utf-8").partition("=")[2].rstrip(";\n"))
    assert found["timesteps"] == 200
    assert [*found["knobs"]] == ["limit"]  # the others are not whole
    assert {name: each["seeds"] for name, each in found["variants"].items()} == {"limit": 2, "limit-terminal": 2}
    evaluations = pd.read_csv(tmp_path / "50" / "compared" / "evaluations.csv")
    for name, tables in found["variants"].items():
        last = evaluations[(evaluations.algorithm == name) & (evaluations.timestep == 200)].mean_return
        assert [table[-1] for table in tables["return"]] == pytest.approx(
            [200, last.mean(), last.min(), last.max()], abs=0.06
        )
        logs = [pd.read_csv(tmp_path / "50" / "logs" / name / str(seed) / "progress.csv") for seed in (0, 1)]
        q_values = np.array([log["train/q_mean"].iloc[-1] for log in logs])
        assert [table[-1] for table in tables["q"]] == pytest.approx(
            [200, q_values.mean(), q_values.min(), q_values.max()], abs=0.06
        )
        assert tables["q"][0] == [150, 200]  # after each episode of 50 timesteps with updates; the first 100 are random


def test_every_knob_changes_one_setting_of_the_preset():
    """Beside the middle value, which changes none."""
    for knob in knobs.KNOBS.values():
        names = [*knob.values.values()]
        assert names[0] != names[-1]
        changes = knobs.CHANGES[knob.limit]
        assert sorted(len(changes[name]) for name in names) == [0] + [1] * (len(names) - 1)
        assert len({change.partition("=")[0] for name in names for change in changes[name]}) == 1


def means(records, name: str, measure: str) -> np.ndarray:
    return np.array(records["variants"][name][measure][1])


def test_the_records_of_tau_are_as_the_page_tells_them(records):
    values = {value: records["variants"][name] for value, name in knobs.KNOBS["tau"].values.items()}
    highest, lowest = (
        {value: pick(each["q"][row]) for value, each in values.items()} for pick, row in ((max, 3), (min, 2))
    )
    assert highest["0.1"] > 0 > highest["0.005"]
    assert highest["1"] > 250
    assert lowest["1"] < min(lowest[value] for value in ("0.1", "0.005", "0.0005")) - 50
    returns = means(records, "tau-1", "return")
    assert returns[-1] < returns.max() - 400  # lost again

    def solved(value: str) -> int:  # the first evaluation above -200, which most call solved
        timesteps, means = values[value]["return"][:2]
        return next((each for each, mean in zip(timesteps, means, strict=True) if mean > -200), 10**9)

    assert solved("0.1") == min(map(solved, values))
    assert max(values["0.0005"]["return"][1]) < -1000


def test_the_records_of_the_other_knobs_are_as_the_page_tells_them(records):
    assert all(means(records, name, "return").max() > -200 for name in ("noise-0", "base", "noise-half", "critic-fast"))
    assert means(records, "critic-slow", "return").max() < -800
    slow, default = means(records, "critic-slow", "q"), means(records, "base", "q")
    assert slow[-1] < slow[len(slow) // 2] - 20 < default[-1] - 20  # still falling
    right, terminal = means(records, "limit", "q"), means(records, "limit-terminal", "q")
    assert np.all(terminal[3:10] > right[3:10])  # costs seem to end
    assert terminal[-1] < right[-1] - 10
    assert means(records, "limit-terminal", "return").max() < means(records, "limit", "return").max() - 30
